"""Derivatives of AEVs that are written out, against those that torch.func finds in the AEVs themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, vmap

from pykinml_func.config import AEVConfig
from pykinml_func.potential.aev import aev_jacobians, aevs
from pykinml_func.potential.aev_derivatives import absolute, relative_curvatures, relative_jacobians, surroundings

TOLERANCE = 1e-11
"""of the largest derivative: rounding alone"""

ELEMENTS = ("C", "H", "O")
SIZES = {"n_radial": 5, "n_angular_radial": 3, "n_angular": 4}
CONFIGS = [
    AEVConfig(elements=ELEMENTS, **SIZES),
    AEVConfig(elements=ELEMENTS, **SIZES, beta=1.0, zeta=14.1, angular_prefactor=2.0, radial_prefactor=0.25),
    AEVConfig(elements=ELEMENTS, **SIZES, beta=1.0, zeta=1.0),
    AEVConfig(
        elements=ELEMENTS,
        **SIZES,
        beta=0.5,
        zeta=2.0,
        radial_eta=4.0,
        angular_eta=3.0,
        angular_sections=(0.1, 1, 2, 2.9),
    ),
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=["rule", "fractional zeta", "zeta 1", "own grids"])


def assert_close(found: Tensor, expected: Tensor) -> None:
    scale = max(float(expected.abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * scale)


def contracted(config: AEVConfig, species: Tensor, positions: Tensor, gradients: Tensor) -> Tensor:
    """sum_k gradients_k d²AEV_k/dx² as written out. Returns (n,3,n,3)."""
    around = surroundings(config, species, positions)
    return absolute(relative_curvatures(config, species, *around, gradients))


def by_torch(config: AEVConfig, species: Tensor, positions: Tensor, gradients: Tensor) -> Tensor:
    """The same by torch.func."""
    return hessian(lambda moved: (gradients * aevs(config, species, moved)).sum())(positions)


def jacobians(config: AEVConfig, species: Tensor, positions: Tensor) -> Tensor:
    """(n,D,n,3) as `aev_jacobians`: a centre moves as against all its neighbours together."""
    relative = relative_jacobians(config, species, *surroundings(config, species, positions)).permute(0, 3, 1, 2)
    own = torch.arange(len(species))
    dense = relative.clone()
    dense[own, :, own] -= relative.sum(dim=2)
    return dense


def gradients_of(config: AEVConfig, n: int) -> Tensor:
    return torch.randn(n, config.length, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


@each_config
@given(species=st.lists(st.integers(0, 2), min_size=1, max_size=7), seed=st.integers(0, 1000))
def test_made_up_structures(
    make_positions: Callable[[int, int], np.ndarray], config: AEVConfig, species: list[int], seed: int
):
    kinds, positions = torch.tensor(species), torch.from_numpy(make_positions(len(species), seed))
    gradients = gradients_of(config, len(species))
    assert_close(jacobians(config, kinds, positions), aev_jacobians(config, kinds, positions))
    arguments = config, kinds, positions, gradients
    assert_close(contracted(*arguments), by_torch(*arguments))


@each_config
def test_straight_atoms(config: AEVConfig):
    """At beta = 1 the sine has a cusp there, and whatever is left out of the one is left out of the other."""
    positions = torch.zeros(4, 3, dtype=torch.float64)
    positions[:, 0] = torch.tensor([0, 1.2, -1.06, 2.26])
    species, gradients = torch.tensor([0, 0, 1, 1]), gradients_of(config, 4)
    assert_close(jacobians(config, species, positions), aev_jacobians(config, species, positions))
    found = contracted(config, species, positions, gradients)
    assert found.isfinite().all() and found.abs().max() > 1
    assert_close(found, by_torch(config, species, positions, gradients))


def test_atoms_across_and_beyond_the_cutoffs():
    config = CONFIGS[0]
    along = torch.tensor([0, 3.7, 5.1, 9.0, 40.0], dtype=torch.float64)
    positions = torch.stack([along, along.sin(), torch.zeros(5, dtype=torch.float64)], dim=1)
    species, gradients = torch.tensor([0, 1, 2, 1, 0]), gradients_of(config, 5)
    found = contracted(config, species, positions, gradients)
    assert_close(found, by_torch(config, species, positions, gradients))
    assert found[0, :, 1].any() and not found[0, :, 3].any() and not found[4].any()


def test_batches_of_positions(make_positions: Callable[[int, int], np.ndarray]):
    config, species = CONFIGS[0], torch.tensor([0, 1, 1, 2, 1])
    positions = torch.from_numpy(np.stack([make_positions(5, seed) for seed in range(3)]))
    gradients = torch.stack([gradients_of(config, 5), gradients_of(config, 5).flip(0), gradients_of(config, 5) ** 2])
    together = vmap(lambda x, g: contracted(config, species, x, g))(positions, gradients)
    for one, x, g in zip(together, positions, gradients, strict=True):
        assert_close(one, contracted(config, species, x, g))


def test_an_unknown_element_is_named():
    with pytest.raises(ValueError, match="species must be indices into the 3 elements"):
        surroundings(CONFIGS[0], torch.tensor([0, 3]), torch.rand(2, 3))
