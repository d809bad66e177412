"""Steps as pure functions: state and batch in, new state and sums out.

# M structures, S species, N atoms a species (padded)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import grad

from pykinml_func.config import ModelConfig
from pykinml_func.potential.forces import batch_energies, batch_energies_and_forces
from pykinml_func.training.losses import energy_loss, force_loss, weighted_loss
from pykinml_func.training.metrics import step_sums
from pykinml_func.training.optimizers import Optimizer
from pykinml_func.types import Batch, Networks, Params, StepSums, TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepSums]]
EvalStep = Callable[[Params, Batch], StepSums]
PredictStep = Callable[[Params, Batch], tuple[Tensor, ...]]


def build_train_step(model_config: ModelConfig, optimizer: Optimizer, force_weight: float | None) -> TrainStep:
    """A step of gradient descent on one batch; the sums are those of before the update.

    force_weight: w in (1 - w) energy loss + w force loss; None trains to energies alone.
    """

    def loss(networks: Networks, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        predicted = _predict(model_config, networks, batch, force_weight is not None)
        total = energy_loss(batch, predicted[0])
        if force_weight is not None:
            total = weighted_loss(total, force_loss(batch, predicted[1]), force_weight)
        return total, predicted

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepSums]:
        networks = state.params.networks
        gradients, predicted = grad(loss, has_aux=True)(networks, batch)
        networks, moments = optimizer.update(gradients, state.optimizer, networks, state.learning_rate)
        return TrainState(Params(networks, state.params.self_energies), moments, state.learning_rate), step_sums(
            batch, *predicted
        )

    return step


def build_eval_step(model_config: ModelConfig, forces: bool) -> EvalStep:
    """Errors of a batch, of its forces too where `forces` is set."""
    predict = build_predict_step(model_config, forces)
    return lambda params, batch: step_sums(batch, *predict(params, batch))


def build_predict_step(model_config: ModelConfig, forces: bool) -> PredictStep:
    """Energies (M,) of a batch less self energies, and where `forces` is set its forces (S,N,3)."""
    return lambda params, batch: _predict(model_config, params.networks, batch, forces)


def _predict(model_config: ModelConfig, networks: Networks, batch: Batch, forces: bool) -> tuple[Tensor, ...]:
    """Energies (M,), and forces (S,N,3) where they are wanted."""
    arguments = (model_config, networks, batch.features, batch.structure_index, batch.structure_mask.shape[0])
    return batch_energies_and_forces(*arguments) if forces else (batch_energies(*arguments),)
