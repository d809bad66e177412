"""Optimisers as pairs of pure functions over pytrees: init(networks) and update(gradients, state, networks, rate)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.types import AdamState, Networks


class Optimizer(NamedTuple):
    """A pair of pure functions."""

    init: Callable[[Networks], AdamState]
    update: Callable[[Networks, AdamState, Networks, Tensor], tuple[Networks, AdamState]]


def adam(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Optimizer:
    """Adam (Kingma and Ba, arXiv:1412.6980, algorithm 1), equal to torch.optim.Adam."""

    def init(networks: Networks) -> AdamState:
        # Each moment has zeros of its own: torch.compile would compile a step again once shared ones part.
        first, second = tree_map(torch.zeros_like, networks), tree_map(torch.zeros_like, networks)
        return AdamState(torch.zeros((), dtype=torch.float64, device=networks.weights[0].device), first, second)

    def update(
        gradients: Networks, state: AdamState, networks: Networks, learning_rate: Tensor
    ) -> tuple[Networks, AdamState]:
        step = state.step + 1
        first = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, state.first, gradients)
        second = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.second, gradients)
        correction1, correction2 = 1 - beta1**step, 1 - beta2**step

        def moved(parameter: Tensor, m: Tensor, v: Tensor) -> Tensor:
            scale = (learning_rate / correction1).to(parameter.dtype)
            return parameter - scale * m / ((v / correction2.to(parameter.dtype)).sqrt() + epsilon)

        return tree_map(moved, networks, first, second), AdamState(step, first, second)

    return Optimizer(init, update)
