"""One element's network on one atom's AEV; batches of atoms and elements are the caller's vmap.

# D AEV length; a layer maps (in,) to (out,)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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


def atomic_energy(activations: tuple[str, ...], network: Networks, inputs: Tensor) -> Tensor:
    """Energy of one atom, self energy excluded. network: one element's layers, no species axis; inputs: (in,), the
    AEV. Returns () eV.
    """
    x = inputs
    biases = network.biases or (None,) * len(network.weights)
    for activation, weight, bias in zip(activations, network.weights, biases, strict=True):
        x = ACTIVATIONS[activation](torch.nn.functional.linear(x, weight, bias))
    return x.squeeze(-1)
