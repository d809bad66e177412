"""Optimizers as pairs of pure functions over pytrees: init(trainable) and update(gradients, state, trainable, rate)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import TrainConfig
from pykinml_func.training.soap import no_curvature, soap_update
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
        return state._replace(moments=(*state.moments, *no_curvature(trainable)))

    return Optimizer(init, _decayed(soap_update, weight_decay))


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
        step = state.step + 1
        # 1 - beta^step: torch.compile computes an exponential that is used twice once, a power anew for every number
        shares = 1 - torch.exp(step * step.new_tensor([math.log(beta1), math.log(beta2)]))
        rate = learning_rate / shares[0]
        first = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, state.moments[0], gradients)
        second = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.moments[1], gradients)

        def moved(p: Tensor, m: Tensor, v: Tensor) -> Tensor:
            return p - rate.to(p.dtype) * m / ((v / shares[1].to(p.dtype)).sqrt() + epsilon)

        return tree_map(moved, trainable, first, second), OptimizerState(step, (first, second))

    return update


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
