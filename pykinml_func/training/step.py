"""Steps as pure functions: state and batch in, new state and sums out.

Those of an ensemble train all members at once: every tensor of the state and every sum has a leading axis of members,
and a batch is of `Packer.pack_members`, or one of `Packer.pack` that they share, whose AEVs are then computed once.
What a member gets is what it would get alone.

# M structures, L fidelity levels, S species, N atoms a species (padded), T tasks, E members
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten

from pykinml_func.config import ModelConfig, TrainConfig
from pykinml_func.potential.ensemble import (
    flat_members,
    member_batch_energies,
    member_batch_energies_and_forces,
)
from pykinml_func.potential.forces import batch_energies, batch_energies_and_forces
from pykinml_func.training.losses import (
    energy_loss,
    force_loss,
    learned_loss,
    weighted_loss,
)
from pykinml_func.training.metrics import step_sums
from pykinml_func.training.optimizers import Optimizer
from pykinml_func.types import Batch, ErrorSums, Networks, Params, StepSums, Trainable, TrainState

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
    model_config: ModelConfig, optimizer: Optimizer, objective: Objective, ema: float = 0.0, n_members: int = 1
) -> TrainStep:
    """A step of gradient descent on one batch; the sums are those of before the update.

    ema: decay of the networks' running mean, 0 for none; n_members: E, with an axis of its own where it is above 1.
    """
    gradients_of = build_gradients(model_config, objective, n_members)
    updated = build_update(optimizer, ema, n_members)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepSums]:
        gradients, sums = gradients_of(state.trainable, batch, state.force_weight)
        return updated(state, gradients), sums

    return step


def build_gradients(model_config: ModelConfig, objective: Objective, n_members: int = 1) -> GradientsOf:
    """The gradients of the loss of a batch, or of one rank's share of it, and the sums over its errors. n_members: as
    in `build_train_step`.
    """

    def loss(trainable: Trainable, batch: Batch, force_weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        arguments = trainable.log_variances, force_weight, batch
        if n_members == 1:
            predicted = _predict(model_config, trainable.networks, batch, objective.forces)
            return _total_loss(objective, *arguments, *predicted), predicted
        predict = _predict_all if _is_shared(batch) else _predict_own
        predicted = predict(model_config, trainable.networks, batch, objective.forces)
        axes = 0, 0, _member_axes(batch), *(0 for _ in predicted)
        losses = vmap(partial(_total_loss, objective), in_dims=axes)(*arguments, *predicted)
        return losses.sum(), predicted  # no member's loss depends on another's parameters

    def gradients_of(trainable: Trainable, batch: Batch, force_weight: Tensor) -> tuple[Trainable, StepSums]:
        # torch.func.grad gives the same, and first imports torch's compiler, which takes a second
        leaves, structure = tree_flatten(trainable)
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            total, predicted = loss(tree_unflatten(leaves, structure), batch, force_weight)
            gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
        found = [each.detach() for each in predicted]
        if n_members == 1:
            return tree_unflatten(gradients, structure), step_sums(batch, *found)
        return tree_unflatten(gradients, structure), _sums_of_members(batch, *found)

    return gradients_of


def _is_shared(batch: Batch) -> bool:
    """Whether all members have the structures of a batch, which then has no axis for them."""
    return batch.energies.ndim == 2


def _member_axes(batch: Batch) -> Batch | None:
    """Where vmap finds the members in a batch of theirs: in all but what feeds the networks, in which they are side by
    side; and nowhere in one that they share.
    """
    if _is_shared(batch):
        return None
    side_by_side: dict[str, Any] = {"features": None, "structure_index": None}
    axes: Batch = tree_map_only(Tensor, lambda _: 0, batch._replace(**side_by_side))
    return axes


def _sums_of_members(batch: Batch, *predicted: Tensor) -> StepSums:
    """`step_sums` of every member."""

    def there(batch: Batch, *predicted: Tensor) -> tuple[ErrorSums, ...]:
        return tuple(sums for sums in step_sums(batch, *predicted) if sums is not None)  # vmap returns no None

    found = vmap(there, in_dims=(_member_axes(batch), *(0 for _ in predicted)))(batch, *predicted)
    return StepSums(found[0], found[1] if len(found) > 1 else None)


def build_update(optimizer: Optimizer, ema: float, n_members: int = 1) -> Update:
    """The state after a step, from the one before and the gradients of a whole batch. ema, n_members: as in
    `build_train_step`.
    """

    def updated(state: TrainState, gradients: Trainable) -> TrainState:
        moved, memory = optimizer.update(gradients, state.optimizer, state.trainable, state.learning_rate)
        params = Params(moved.networks, state.params.self_energies)
        average = _average(state.average, moved.networks, memory.step, ema)
        return state._replace(params=params, log_variances=moved.log_variances, optimizer=memory, average=average)

    return updated if n_members == 1 else vmap(updated)


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


def build_eval_step(model_config: ModelConfig, forces: bool, n_members: int = 1) -> EvalStep:
    """Errors of a batch, of its forces too where `forces` is set; of an ensemble, those of each member on the same
    batch of `Packer.pack`.
    """
    predict = build_predict_step(model_config, forces, n_members)
    if n_members == 1:
        return lambda params, batch: step_sums(batch, *predict(params, batch))
    return lambda params, batch: _sums_of_members(batch, *predict(params, batch))


def build_mean_eval_step(model_config: ModelConfig, forces: bool, n_members: int) -> EvalStep:
    """Errors of what an ensemble predicts: the mean of its members."""
    predict = build_predict_step(model_config, forces, n_members)
    return lambda params, batch: step_sums(batch, *(found.mean(dim=0) for found in predict(params, batch)))


def build_predict_step(model_config: ModelConfig, forces: bool, n_members: int = 1) -> PredictStep:
    """Energies (M,L) of a batch less self energies, and where `forces` is set its forces (S,N,L,3); of an ensemble with
    a leading axis E.
    """
    if n_members == 1:
        return lambda params, batch: _predict(model_config, params.networks, batch, forces)
    return lambda params, batch: _predict_all(model_config, params.networks, batch, forces)


def _predict(
    model_config: ModelConfig, networks: tuple[Networks, ...], batch: Batch, forces: bool
) -> tuple[Tensor, ...]:
    """Energies (M,L), and forces (S,N,L,3) where they are wanted."""
    arguments = (model_config, networks, batch.features, batch.structure_index, batch.energy_mask.shape[-2])
    return batch_energies_and_forces(*arguments) if forces else (batch_energies(*arguments),)


def _predict_all(
    model_config: ModelConfig, networks: tuple[Networks, ...], batch: Batch, forces: bool
) -> tuple[Tensor, ...]:
    """As `_predict`, by every member."""
    arguments = (model_config, networks, batch.features, batch.structure_index, batch.energy_mask.shape[-2])
    return member_batch_energies_and_forces(*arguments) if forces else (member_batch_energies(*arguments),)


def _predict_own(
    model_config: ModelConfig, networks: tuple[Networks, ...], batch: Batch, forces: bool
) -> tuple[Tensor, ...]:
    """As `_predict`, by every member on structures of its own."""
    shape = batch.energy_mask.shape[:2]
    arguments = (flat_members(networks), batch.features, batch.structure_index, shape[0] * shape[1])
    if not forces:
        return (batch_energies(model_config, *arguments).unflatten(0, shape),)
    energies, own = batch_energies_and_forces(model_config, *arguments)
    return energies.unflatten(0, shape), own.unflatten(0, (shape[0], -1))
