"""Optimizers as pairs of pure functions over pytrees: init(trainable) and update(gradients, state, trainable, rate)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from pykinml_func.config import TrainConfig
from pykinml_func.types import OptimizerState, Trainable

_Update = Callable[[Trainable, OptimizerState, Trainable, Tensor], tuple[Trainable, OptimizerState]]


class Optimizer(NamedTuple):
    """A pair of pure functions."""

    init: Callable[[Trainable], OptimizerState]
    update: _Update


def build_optimizer(training: TrainConfig) -> Optimizer:
    """The optimizer that `training` names."""
    if training.optimizer == "sgd":
        return sgd(training.momentum, training.weight_decay)
    return {"adam": adam, "adamw": adamw, "soap": soap}[training.optimizer](training.weight_decay)


def sgd(momentum: float = 0.5, weight_decay: float = 0.0) -> Optimizer:
    """Gradient descent with Nesterov momentum, equal to torch.optim.SGD(nesterov=True).

    Sutskever et al., ICML 2013; weight_decay adds that times the networks' parameters to the gradient.
    """

    def update(
        gradients: Trainable, state: OptimizerState, trainable: Trainable, learning_rate: Tensor
    ) -> tuple[Trainable, OptimizerState]:
        gradients = _penalized(gradients, trainable, weight_decay)
        velocity = tree_map(lambda v, g: momentum * v + g, state.moments[0], gradients)
        moved = tree_map(
            lambda p, g, v: p - learning_rate.to(p.dtype) * (g + momentum * v), trainable, gradients, velocity
        )
        return moved, OptimizerState(state.step + 1, (velocity,))

    return Optimizer(lambda trainable: _zeros(trainable, 1), update)


def adam(weight_decay: float = 0.0) -> Optimizer:
    """Adam (Kingma and Ba, arXiv:1412.6980, algorithm 1), equal to torch.optim.Adam.

    weight_decay adds that times the networks' parameters to the gradient.
    """
    plain = _adam_update()

    def update(
        gradients: Trainable, state: OptimizerState, trainable: Trainable, learning_rate: Tensor
    ) -> tuple[Trainable, OptimizerState]:
        return plain(_penalized(gradients, trainable, weight_decay), state, trainable, learning_rate)

    return Optimizer(lambda trainable: _zeros(trainable, 2), update)


def adamw(weight_decay: float = 0.0) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), equal to torch.optim.AdamW."""
    return Optimizer(lambda trainable: _zeros(trainable, 2), _decayed(_adam_update(), weight_decay))


def soap(weight_decay: float = 0.0) -> Optimizer:
    """Adam in the eigenbasis of Shampoo's preconditioner: Vyas et al., arXiv:2409.11321, algorithm 3.

    A layer's gradient G is seen in the eigenvectors of the running means of G G^T and G^T G, the two factors of its
    curvature: inputs that rise and fall together, as the terms of an AEV do, then learn at rates of their own. Biases
    and loss weights take Adam's steps. weight_decay is decoupled, as in AdamW.
    """

    def init(trainable: Trainable) -> OptimizerState:
        state = _zeros(trainable, 2)
        means = tuple(tree_map(partial(_no_mean, side), trainable) for side in _SIDES)
        bases = tuple(tree_map(_identity, mean) for mean in means)
        return state._replace(moments=(*state.moments, *means, *bases))

    return Optimizer(init, _decayed(_soap_update, weight_decay))


_SIDES = (-2, -1)
"""Axes of a layer (S,out,in) that its gradient is turned on."""


def _no_mean(side: int, parameter: Tensor) -> Tensor:
    """The mean of no G G^T (side -2) or G^T G (-1); without numbers for what is no layer."""
    size = parameter.shape[side] if parameter.ndim == 3 else 0
    return parameter.new_zeros(*parameter.shape[:-2], size, size)


def _identity(mean: Tensor) -> Tensor:
    return torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device).expand_as(mean).clone()


def _soap_update(
    gradients: Trainable, state: OptimizerState, trainable: Trainable, learning_rate: Tensor
) -> tuple[Trainable, OptimizerState]:
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
torch.library.register_fake("pykinml::turn", lambda _, bases, __: list(map(torch.empty_like, bases)), lib=_LIBRARY)


def _decayed(update: _Update, weight_decay: float) -> _Update:
    """The update with decay of the networks' parameters, decoupled from the gradient."""

    def decayed(
        gradients: Trainable, state: OptimizerState, trainable: Trainable, learning_rate: Tensor
    ) -> tuple[Trainable, OptimizerState]:
        shrunk = tree_map(lambda p: p - (learning_rate * weight_decay).to(p.dtype) * p, trainable.networks)
        return update(gradients, state, trainable._replace(networks=shrunk), learning_rate)

    return decayed


def _adam_update(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> _Update:
    def update(
        gradients: Trainable, state: OptimizerState, trainable: Trainable, learning_rate: Tensor
    ) -> tuple[Trainable, OptimizerState]:
        # as one vector: a dozen operations in all, not a dozen for each layer
        step, gradient = state.step + 1, _flat(gradients)
        first = beta1 * _flat(state.moments[0]) + (1 - beta1) * gradient
        second = beta2 * _flat(state.moments[1]) + (1 - beta2) * gradient * gradient
        scale = (learning_rate / (1 - beta1**step)).to(gradient.dtype)
        size = (second / (1 - beta2**step).to(gradient.dtype)).sqrt() + epsilon
        moved = _flat(trainable) - scale * first / size
        unflat = partial(_unflat, trainable)
        return unflat(moved), OptimizerState(step, (unflat(first), unflat(second)))

    return update


def _flat(tree: Trainable) -> Tensor:
    """(all numbers,)"""
    return torch.cat([leaf.flatten() for leaf in tree_leaves(tree)])


def _unflat(like: Trainable, flat: Tensor) -> Trainable:
    """The inverse of `_flat`, in the shapes of `like`."""
    leaves, structure = tree_flatten(like)
    parts = flat.split([leaf.numel() for leaf in leaves])
    return tree_unflatten([part.view_as(leaf) for part, leaf in zip(parts, leaves, strict=True)], structure)


def _penalized(gradients: Trainable, trainable: Trainable, weight_decay: float) -> Trainable:
    """The gradients of the loss with the penalty weight_decay/2 |networks|².

    PyKinML decays the learned loss weights too, which moves them off what Kendall's rule finds; here they are left out.
    """
    if weight_decay == 0:
        return gradients
    networks = tree_map(lambda g, p: g + weight_decay * p, gradients.networks, trainable.networks)
    return gradients._replace(networks=networks)


def _zeros(trainable: Trainable, n_moments: int) -> OptimizerState:
    # Each moment has zeros of its own: torch.compile would compile a step again once shared ones part.
    moments = tuple(tree_map(torch.zeros_like, trainable) for _ in range(n_moments))
    return OptimizerState(torch.zeros((), dtype=torch.float64, device=trainable.log_variances.device), moments)
