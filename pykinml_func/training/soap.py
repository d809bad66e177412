"""SOAP's steps, pure: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv:2409.11321, algorithm 3).

# S species
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from pykinml_func.types import OptimizerState, Trainable

_SIDES = (-2, -1)
"""Axes of a layer (S,out,in) that its gradient is turned on."""


def no_curvature(trainable: Trainable) -> tuple[Trainable, ...]:
    """What SOAP remembers beside Adam's moments, before the first step: the means of both sides, then their bases."""
    means = tuple(tree_map(partial(_no_mean, side), trainable) for side in _SIDES)
    return *means, *(tree_map(_identity, mean) for mean in means)


def _no_mean(side: int, parameter: Tensor) -> Tensor:
    """The mean of no G G^T (side -2) or G^T G (-1); without numbers for what is no layer."""
    size = parameter.shape[side] if parameter.ndim == 3 else 0
    return parameter.new_zeros(*parameter.shape[:-2], size, size)


def _identity(mean: Tensor) -> Tensor:
    return torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device).expand_as(mean).clone()


def soap_update(
    gradients: Trainable, state: OptimizerState, trainable: Trainable, learning_rate: Tensor
) -> tuple[Trainable, OptimizerState]:
    """One step, without decay; moments: Adam's two, then those of `no_curvature`."""
    beta, epsilon, every = 0.95, 1e-8, 10
    step = state.step + 1
    first, second, *others = state.moments

    def mean(old: Tensor, new: Tensor) -> Tensor:
        return beta * old + (1 - beta) * new

    def outer(side: int, old: Tensor, gradient: Tensor) -> Tensor:
        if gradient.ndim < 3:
            return old
        g = gradient if side == _SIDES[0] else gradient.mT
        return mean(old, g @ g.mT)

    first = tree_map(mean, first, gradients)
    means = [tree_map(partial(outer, side), old, gradients) for side, old in zip(_SIDES, others[:2], strict=True)]
    bases = _turned(means, others[2:], (step == 1) | (step % every == 0))
    second = tree_map(lambda old, g, *basis: mean(old, _into(g, *basis) ** 2), second, gradients, *bases)
    unbiased = 1 - beta**step

    def moved(parameter: Tensor, first: Tensor, second: Tensor, *basis: Tensor) -> Tensor:
        size = (second / unbiased.to(second.dtype)).sqrt() + epsilon
        return parameter - (learning_rate / unbiased).to(first.dtype) * _back(_into(first, *basis) / size, *basis)

    return tree_map(moved, trainable, first, second, *bases), OptimizerState(step, (first, second, *means, *bases))


def _into(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x (S,out,in) in the bases of its sides; what is no layer has none."""
    return left.mT @ x @ right if x.ndim == 3 else x


def _back(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The inverse of `_into`."""
    return left @ x @ right.mT if x.ndim == 3 else x


def _turned(means: Sequence[Trainable], bases: Sequence[Trainable], now: Tensor) -> Sequence[Trainable]:
    """The bases, one QR iteration nearer to the eigenvectors of `means` where `now` () is true."""
    leaves, structure = tree_flatten(list(bases))
    turned: list[Trainable] = tree_unflatten(torch.ops.pykinml.turn(tree_leaves(means), leaves, now), structure)
    return turned


def _turn(means: list[Tensor], bases: list[Tensor], now: Tensor) -> list[Tensor]:
    return [_qr_iteration(*pair) if now else pair[1].clone() for pair in zip(means, bases, strict=True)]


def _qr_iteration(mean: Tensor, basis: Tensor) -> Tensor:
    # As if a little of the identity were added to the mean: the eigenvectors are the same, and those of its null space
    # stay where they are, which rounding would choose else.
    little = mean.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None] * torch.finfo(mean.dtype).eps ** 0.5
    return torch.linalg.qr(mean @ basis + little * basis).Q.contiguous()  # as a checkpoint gives it back


# An operation of its own: whether to turn is a matter of values, on which a recorded step cannot branch.
_LIBRARY = torch.library.Library("pykinml", "FRAGMENT")
_LIBRARY.define("turn(Tensor[] means, Tensor[] bases, Tensor now) -> Tensor[]")
_LIBRARY.impl("turn", _turn, "CompositeExplicitAutograd")


def _turn_members(
    info: Any, in_dims: tuple[Any, ...], means: list[Tensor], bases: list[Tensor], now: Tensor
) -> tuple[list[Tensor], list[int]]:
    """What vmap makes of it. Members step together, so that one turns when all do."""

    def batched(tensors: list[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
        pairs = zip(tensors, dims, strict=True)
        return [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in pairs
        ]

    together = now if in_dims[2] is None else now.select(in_dims[2], 0)
    turned = torch.ops.pykinml.turn(batched(means, in_dims[0]), batched(bases, in_dims[1]), together)
    return turned, [0] * len(turned)


torch.library.register_vmap("pykinml::turn", _turn_members, lib=_LIBRARY)
torch.library.register_fake("pykinml::turn", lambda _, bases, __: list(map(torch.empty_like, bases)), lib=_LIBRARY)
