"""One network on one atom, against arithmetic that is written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.utils._pytree import tree_leaves

from pykinml_func.config.run import Activation
from pykinml_func.potential.mlp import ACTIVATIONS, SLOPES, atomic_energy, atomic_energy_and_gradient
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


def test_every_activation_has_its_slope():
    assert set(SLOPES) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", FORMULAS)
def test_slopes_are_the_derivatives_of_their_activations(name: str):
    x = torch.linspace(-6, 6, 121, dtype=torch.float64)  # 0 among them, where relu has none: 0, as in torch
    expected = vmap(grad(ACTIVATIONS[name]))(x)
    torch.testing.assert_close(SLOPES[name](x, ACTIVATIONS[name](x)), expected, rtol=0, atol=ROUNDING)


def random_network(generator: torch.Generator, widths: list[int], biases: bool) -> Networks:
    shapes = list(pairwise(widths))
    weights = tuple(torch.randn(out, into, generator=generator, dtype=torch.float64) for into, out in shapes)
    shifts = tuple(torch.randn(out, generator=generator, dtype=torch.float64) for _, out in shapes)
    return Networks(weights, shifts if biases else ())


@given(
    names=st.lists(st.sampled_from(sorted(FORMULAS)), min_size=1, max_size=4),
    biases=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_gradient_is_that_of_the_energy(names: list[str], biases: bool, seed: int):
    generator, activations = torch.Generator().manual_seed(seed), tuple(names)
    network = random_network(generator, [5, *[3] * (len(names) - 1), 1], biases)
    aev = torch.rand(5, generator=generator, dtype=torch.float64)
    gradient, value = grad_and_value(atomic_energy, argnums=2)(activations, network, aev)
    found_value, found = atomic_energy_and_gradient(activations, network, aev)
    assert torch.equal(found_value, value)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)

    def of_gradient(gradient_of: Callable[..., Tensor], network: Networks) -> Tensor:
        return (gradient_of(activations, network, aev) ** 2).sum()

    # training to forces differentiates it again
    plain = grad(of_gradient, argnums=1)(grad(atomic_energy, argnums=2), network)
    closed = grad(of_gradient, argnums=1)(lambda *given: atomic_energy_and_gradient(*given)[1], network)
    for one, other in zip(tree_leaves(closed), tree_leaves(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
