"""One network on one atom, against arithmetic that is written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from pykinml_func.config.run import Activation
from pykinml_func.potential.mlp import ACTIVATIONS, atomic_energy
from pykinml_func.types import Networks

ROUNDING = 1e-15  # of numbers of the order of 1

FORMULAS: dict[str, Callable[[float], float]] = {
    "gaussian": lambda x: math.exp(-(x**2)),
    "tanh": lambda x: (math.exp(x) - math.exp(-x)) / (math.exp(x) + math.exp(-x)),
    "identity": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


def test_every_activation_of_the_config_exists():
    assert set(ACTIVATIONS) == set(get_args(Activation)) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_follow_their_formulas(name: str):
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[name](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](x), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("biases", [True, False])
def test_a_network_is_its_layers_in_turn(biases: bool):
    generator = torch.Generator().manual_seed(0)
    weights = tuple(
        torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.5 for shape in [(4, 3), (2, 4), (1, 2)]
    )
    shifts = tuple(torch.rand(n, generator=generator, dtype=torch.float64) for n in (4, 2, 1)) if biases else ()
    aev = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64)
    names = ("gaussian", "silu", "tanh")

    x = aev.tolist()
    for layer, name in enumerate(names):
        rows = weights[layer].tolist()
        offsets = shifts[layer].tolist() if biases else [0.0] * len(rows)
        x = [
            FORMULAS[name](sum(w * v for w, v in zip(row, x, strict=True)) + offset)
            for row, offset in zip(rows, offsets, strict=True)
        ]
    value = atomic_energy(names, Networks(weights, shifts), aev)
    assert value.shape == ()
    assert value.item() == pytest.approx(x[0], abs=ROUNDING)
