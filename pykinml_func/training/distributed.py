"""Training steps of several ranks: the pure gradients, under DistributedDataParallel or fully_shard.

Each rank computes the gradients of its share of a batch; torch's module, which holds the parameters, adds them up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from pykinml_func.training.ranks import Ranks
from pykinml_func.training.step import GradientsOf, TrainStep, Update
from pykinml_func.types import Batch, StepSums, Trainable, TrainState


class LossModule(nn.Module):
    """The trainable parameters as a module, whose backward pass gives the gradients that a pure function computes."""

    def __init__(self, trainable: Trainable, gradients_of: GradientsOf) -> None:
        """trainable: parameters to begin with, none of which is shared."""
        super().__init__()
        self._gradients_of = gradients_of
        leaves, self._structure = tree_flatten(trainable)
        self._is_empty = [leaf.numel() == 0 for leaf in leaves]  # which fully_shard takes no part in
        self._empty = [leaf for leaf in leaves if leaf.numel() == 0]
        self.leaves = nn.ParameterList(leaf.clone() for leaf in leaves if leaf.numel())

    def forward(self, batch: Batch, force_weight: Tensor) -> tuple[Tensor, StepSums]:
        """Something to call backward on, and the sums over the errors."""
        found: list[StepSums] = []

        def compute(*leaves: Tensor) -> list[Tensor]:
            gradients, sums = self._gradients_of(self.tree(leaves), batch, force_weight)
            found.append(sums)
            return self.filled(gradients)

        return _Gradients.apply(compute, *self.leaves), found[0]

    def tree(self, leaves: Any) -> Trainable:
        """What is trained, with `leaves` for the parameters."""
        full, empty = iter(leaves), iter(self._empty)
        together = [next(empty) if is_empty else next(full) for is_empty in self._is_empty]
        tree: Trainable = tree_unflatten(together, self._structure)
        return tree

    def filled(self, trainable: Trainable) -> list[Tensor]:
        """The leaves that are parameters here."""
        leaves = zip(tree_leaves(trainable), self._is_empty, strict=True)
        return [leaf for leaf, is_empty in leaves if not is_empty]


class _Gradients(Function):
    """A scalar whose gradients were computed along with it."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., list[Tensor]], *leaves: Tensor) -> Tensor:
        """compute: the leaves' gradients from their values."""
        ctx.save_for_backward(*compute(*(leaf.detach() for leaf in leaves)))
        return torch.ones((), dtype=leaves[0].dtype, device=leaves[0].device)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> Any:
        """The gradients, times that of the scalar, with the strides of the parameters, or torch warns."""
        return (None, *((above[0] * gradient.flatten()).view(gradient.shape) for gradient in ctx.saved_tensors))


def build_ddp_step(gradients_of: GradientsOf, updated: Update, state: TrainState, ranks: Ranks) -> TrainStep:
    """A step in which every rank has all parameters. state: of the first step, for its shapes and its device."""
    module = LossModule(state.trainable, gradients_of)
    shared = DistributedDataParallel(module, gradient_as_bucket_view=True)
    return _build_step(module, shared, updated, ranks)


def build_fsdp_step(gradients_of: GradientsOf, updated: Update, state: TrainState, ranks: Ranks) -> TrainStep:
    """A step of states that `shard` has cut: each rank has parameters and moments of its own. state: uncut."""
    module = LossModule(state.trainable, gradients_of)
    fully_shard(module, mesh=_mesh(ranks), reshard_after_forward=False)
    return _build_step(module, module, updated, ranks)


def _build_step(module: LossModule, shared: nn.Module, updated: Update, ranks: Ranks) -> TrainStep:
    """module: whose parameters are replaced by the state's; shared: it, in what adds up gradients over ranks."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepSums]:
        with torch.no_grad():
            for parameter, value in zip(module.leaves, module.filled(state.trainable), strict=True):
                _local(parameter).copy_(value)
        scalar, sums = shared(batch, state.force_weight)
        scalar.backward(torch.full_like(scalar, ranks.size))  # torch takes means over ranks, and sums are due
        gradients = module.tree([_local(parameter.grad) for parameter in module.leaves])
        moved = updated(state, gradients)
        module.zero_grad()
        return moved, sums

    return step


def _local(tensor: Tensor | None) -> Tensor:
    """A rank's own part."""
    if tensor is None:
        raise TypeError("every parameter must have a gradient, got one without")
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _mesh(ranks: Ranks) -> DeviceMesh:
    return init_device_mesh(ranks.device.type, (ranks.size,))


def shard(state: TrainState, ranks: Ranks) -> TrainState:
    """Of every parameter and moment the part that fully_shard gives to this rank, cut along the first axis."""
    mesh = _mesh(ranks)

    def own(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, mesh, [Shard(0)]).to_local() if tensor.numel() else tensor

    return _map_shards(own, state)


def unshard(state: TrainState, like: TrainState, ranks: Ranks) -> TrainState:
    """The whole of a state of which each rank has a part. like: an uncut state, for its shapes."""
    mesh = _mesh(ranks)

    def whole(part: Tensor, model: Tensor) -> Tensor:
        if not model.numel():
            return part
        cut = DTensor.from_local(part, mesh, [Shard(0)], shape=model.shape, stride=model.stride())
        found: Tensor = cut.full_tensor()
        return found

    return _map_shards(whole, state, like)


def _map_shards(function: Callable[..., Tensor], state: TrainState, *others: TrainState) -> TrainState:
    """`function` of every tensor of a state that fully_shard cuts, and of its counterparts in `others`."""

    def cut(state: TrainState) -> Any:
        return state.trainable, state.optimizer.moments, state.average

    trainable, moments, average = tree_map(function, cut(state), *map(cut, others))
    params = state.params._replace(networks=trainable.networks)
    memory = state.optimizer._replace(moments=moments)
    return state._replace(params=params, log_variances=trainable.log_variances, optimizer=memory, average=average)
