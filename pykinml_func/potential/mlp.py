"""One element's network on one atom's AEV, and its derivative; batches of atoms and elements are the caller's vmap.

# D AEV length; a layer maps (in,) to (out,)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import linear

from pykinml_func.types import Networks


def gaussian(x: Tensor) -> Tensor:
    """exp(-x²), elementwise: PyKinML's default activation."""
    return torch.exp(-x * x)


def identity(x: Tensor) -> Tensor:
    """x: the activation of an output layer."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": gaussian,
    "tanh": torch.tanh,
    "identity": identity,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
}


SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gaussian": lambda x, y: -2.0 * x * y,  # a float: torch would convert an int in every call
    "tanh": lambda _, y: 1 - y * y,
    "identity": lambda x, _: torch.ones(x.shape, dtype=x.dtype, device=x.device),  # one for all that vmap maps over
    "relu": lambda x, _: (x > 0).to(x.dtype),
    "silu": lambda x, y: torch.sigmoid(x) * (1 + x - y),
}
"""The derivative of each activation, of its argument and its value."""


def atomic_energy(activations: tuple[str, ...], network: Networks, inputs: Tensor) -> Tensor:
    """Energy of one atom, self energy excluded. network: one element's layers, no species axis; inputs: (in,), the
    AEV. Returns () eV.
    """
    x = inputs
    for activation, weight, bias in _layers(activations, network):
        x = ACTIVATIONS[activation](linear(x, weight, bias))
    return x.squeeze(-1)


def atomic_energy_and_gradient(
    activations: tuple[str, ...], network: Networks, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Energy of one atom and its derivative by `inputs`, by the chain rule. Arguments as `atomic_energy`. Returns () eV
    and (in,) eV.

    Written out, since training to forces differentiates it again, and each derivative of a derivative that autograd
    takes costs operations that this one does without.
    """
    x, slopes = inputs, []
    for activation, weight, bias in _layers(activations, network):
        summed = linear(x, weight, bias)
        x = ACTIVATIONS[activation](summed)
        slopes.append(SLOPES[activation](summed, x))
    gradient = slopes[-1] @ network.weights[-1]
    for slope, weight in zip(reversed(slopes[:-1]), reversed(network.weights[:-1]), strict=True):
        gradient = (gradient * slope) @ weight
    return x.squeeze(-1), gradient


def _layers(activations: tuple[str, ...], network: Networks) -> Iterable[tuple[str, Tensor, Tensor | None]]:
    return zip(activations, network.weights, network.biases or (None,) * len(network.weights), strict=True)
