"""Steps as pure functions: state and batch in, new state and sums out.

# M structures, L fidelity levels, S species, N atoms a species (padded), T tasks
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pykinml_func.config import ModelConfig, TrainConfig
from pykinml_func.potential.forces import batch_energies, batch_energies_and_forces
from pykinml_func.training.losses import (
    energy_loss,
    force_loss,
    learned_loss,
    weighted_loss,
)
from pykinml_func.training.metrics import step_sums
from pykinml_func.training.optimizers import Optimizer
from pykinml_func.types import Batch, Networks, Params, StepSums, Trainable, TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepSums]]
GradientsOf = Callable[[Trainable, Batch, Tensor], tuple[Trainable, StepSums]]
"""Of the trainable parameters, a batch and the force weight ()."""
Update = Callable[[TrainState, Trainable], TrainState]
EvalStep = Callable[[Params, Batch], StepSums]
PredictStep = Callable[[Params, Batch], tuple[Tensor, ...]]


class Objective(NamedTuple):
    """What is trained to, and how its parts are weighed."""

    forces: bool = False
    force_weight: float = 0.3
    """w in (1 - w) energy loss + w force loss, a level: of the first state, which carries it"""
    learned: bool = False
    """weights are learned, in place of w"""

    def n_tasks(self, n_levels: int) -> int:
        """T, the tasks whose weights are learned: energies of each level, then forces of each."""
        return n_levels * (1 + self.forces) if self.learned else 0


def build_objective(training: TrainConfig) -> Objective:
    """The objective that `training` names."""
    return Objective(training.forces, training.force_weight, training.learn_loss_weights)


def init_state(
    params: Params, optimizer: Optimizer, objective: Objective, learning_rate: float, ema: float = 0.0
) -> TrainState:
    """The state before the first step: no moments, and loss weights of 1 where they are learned (s = 0).

    ema: as in `build_train_step`.
    """
    dtype, device = params.networks[0].weights[0].dtype, params.self_energies.device
    log_variances = torch.zeros(objective.n_tasks(len(params.networks)), dtype=dtype, device=device)
    rate = torch.tensor(learning_rate, dtype=torch.float64, device=device)
    weight = torch.tensor(objective.force_weight, dtype=torch.float64, device=device)
    average = tree_map(torch.clone, params.networks) if ema else ()
    memory = optimizer.init(Trainable(params.networks, log_variances))
    return TrainState(params, log_variances, memory, rate, weight, average)


def build_train_step(
    model_config: ModelConfig, optimizer: Optimizer, objective: Objective, ema: float = 0.0
) -> TrainStep:
    """A step of gradient descent on one batch; the sums are those of before the update.

    ema: decay of the networks' running mean, 0 for none.
    """
    gradients_of, updated = build_gradients(model_config, objective), build_update(optimizer, ema)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepSums]:
        gradients, sums = gradients_of(state.trainable, batch, state.force_weight)
        return updated(state, gradients), sums

    return step


def build_gradients(model_config: ModelConfig, objective: Objective) -> GradientsOf:
    """The gradients of the loss of a batch, or of one rank's share of it, and the sums over its errors."""

    def loss(trainable: Trainable, batch: Batch, force_weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        predicted = _predict(model_config, trainable.networks, batch, objective.forces)
        return _total_loss(objective, trainable.log_variances, force_weight, batch, *predicted), predicted

    def gradients_of(trainable: Trainable, batch: Batch, force_weight: Tensor) -> tuple[Trainable, StepSums]:
        # torch.func.grad gives the same, and first imports torch's compiler, which takes a second
        leaves, structure = tree_flatten(trainable)
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            total, predicted = loss(tree_unflatten(leaves, structure), batch, force_weight)
            gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
        return tree_unflatten(gradients, structure), step_sums(batch, *map(torch.detach, predicted))

    return gradients_of


def build_update(optimizer: Optimizer, ema: float) -> Update:
    """The state after a step, from the one before and the gradients of a whole batch. ema: as in `build_train_step`."""

    def updated(state: TrainState, gradients: Trainable) -> TrainState:
        moved, memory = optimizer.update(gradients, state.optimizer, state.trainable, state.learning_rate)
        params = Params(moved.networks, state.params.self_energies)
        average = _average(state.average, moved.networks, memory.step, ema)
        return state._replace(params=params, log_variances=moved.log_variances, optimizer=memory, average=average)

    return updated


def _average(
    average: tuple[Networks, ...], networks: tuple[Networks, ...], step: Tensor, ema: float
) -> tuple[Networks, ...]:
    """The running mean after a step, of a decay that rises to `ema`, so that the first networks are soon forgotten."""
    decay = (step / (9 + step)).clamp(max=ema)
    mixed: tuple[Networks, ...] = tree_map(
        lambda old, new: new + decay.to(new.dtype) * (old - new), average, networks if average else ()
    )
    return mixed


def _total_loss(
    objective: Objective,
    log_variances: Tensor,
    force_weight: Tensor,
    batch: Batch,
    energies: Tensor,
    forces: Tensor | None = None,
) -> Tensor:
    """force_weight: (); energies: (M,L) eV; forces: (S,N,L,3) eV/Å. Returns ()."""
    losses, counts = [energy_loss(batch, energies)], [batch.n_energies]
    if forces is not None and batch.n_forces is not None:
        losses.append(force_loss(batch, forces))
        counts.append(batch.n_forces)
    if objective.learned:
        return learned_loss(torch.cat(losses), torch.cat(counts) > 0, log_variances, batch.share)
    return losses[0].sum() if forces is None else weighted_loss(losses[0], losses[1], force_weight.to(energies.dtype))


def build_eval_step(model_config: ModelConfig, forces: bool) -> EvalStep:
    """Errors of a batch, of its forces too where `forces` is set."""
    predict = build_predict_step(model_config, forces)
    return lambda params, batch: step_sums(batch, *predict(params, batch))


def build_predict_step(model_config: ModelConfig, forces: bool) -> PredictStep:
    """Energies (M,L) of a batch less self energies, and where `forces` is set its forces (S,N,L,3)."""
    return lambda params, batch: _predict(model_config, params.networks, batch, forces)


def _predict(
    model_config: ModelConfig, networks: tuple[Networks, ...], batch: Batch, forces: bool
) -> tuple[Tensor, ...]:
    """Energies (M,L), and forces (S,N,L,3) where they are wanted."""
    arguments = (model_config, networks, batch.features, batch.structure_index, batch.energy_mask.shape[0])
    return batch_energies_and_forces(*arguments) if forces else (batch_energies(*arguments),)
