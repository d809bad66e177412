"""A chain of three levels: its values written out, what goes up, what stays below, and torch.func on all of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap
from torch.utils._pytree import tree_map

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.potential.aev import aevs
from pykinml_func.potential.energy import energy, init_params, level_energies
from pykinml_func.potential.multifidelity import (
    chain_energies,
    chain_energies_and_gradients,
    highest_energy_and_gradient,
    input_length,
)
from pykinml_func.types import Networks, Params

ROUNDING = 1e-11  # eV, where self energies of -1e3 eV an atom are summed; 1e-12 without
BARE_ROUNDING = 1e-12
DIFFERENCE_TOLERANCE = 1e-6  # eV/Å and eV/Å²; central differences with step 1e-5 Å

SPECIES = torch.tensor([0, 1, 2, 1, 0])
COMPOSITION = torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)
SELF_ENERGIES = torch.tensor(
    [[-1035.1, -15.6, -2041.3], [-1036.2, -15.9, -2042.4], [-1036.0, -16.0, -2042.0]], dtype=torch.float64
)
VARIANTS = {
    "all": {},
    "no AEV": {"pass_aev": False},
    "no energy": {"pass_energy": False},
    "no sum": {"sum_levels": False},
    "energy alone": {"pass_aev": False, "sum_levels": False},
    "AEV alone": {"pass_energy": False, "sum_levels": False},
}

Positions = Callable[[int, int], np.ndarray]

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def chain(variant: str = "all", levels: tuple[int, ...] = (0, 1, 4)) -> ModelConfig:
    aev = AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4)
    settings = {"neurons": (6, 4, 1), "activations": ("gaussian", "silu", "identity"), **VARIANTS[variant]}
    return ModelConfig.model_validate({"aev": aev, "fidelities": levels, **settings})


def params_of(model: ModelConfig, seed: int = 0) -> Params:
    """Steeper networks than are drawn, so that made-up atoms feel forces of about 1 eV/Å."""
    drawn = init_params(model, torch.Generator().manual_seed(seed)).networks
    networks = tuple(Networks(tuple(3 * weight for weight in level.weights), level.biases) for level in drawn)
    return Params(networks, SELF_ENERGIES[: model.n_levels])


def atoms(make_positions: Positions, seed: int = 0) -> Tensor:
    return torch.from_numpy(make_positions(5, seed))


def bare(params: Params) -> Params:
    return params._replace(self_energies=torch.zeros_like(params.self_energies))


def written_out(model: ModelConfig, params: Params, positions: Tensor) -> list[float]:
    """Energies of the levels by a loop over atoms, levels and layers; self energies excluded."""
    totals = [0.0] * model.n_levels
    for atom, aev in enumerate(aevs(model.aev, SPECIES, positions)):
        element, below = int(SPECIES[atom]), torch.zeros(1, dtype=torch.float64)
        for level, networks in enumerate(params.networks):
            parts = [aev, below]
            if level == 0:
                parts = [aev]
            elif not model.pass_aev:
                parts = [below]
            elif not model.pass_energy:
                parts = [aev]
            x = torch.cat(parts)
            for layer in range(3):
                x = networks.weights[layer][element] @ x + networks.biases[layer][element]
                x = [torch.exp(-(x**2)), x * torch.sigmoid(x), x][layer]
            below = x + below if level > 0 and model.sum_levels else x
            totals[level] += below.item()
    return totals


@each_variant
def test_a_chain_is_its_networks_in_turn(make_positions: Positions, variant: str):
    model, positions = chain(variant), atoms(make_positions, 2)
    params = params_of(model)
    found = level_energies(model, bare(params), SPECIES, positions)
    expected = torch.tensor(written_out(model, params, positions), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=BARE_ROUNDING)
    assert expected.diff().abs().min() > 1e-3, "levels must differ for the test to see which is which"
    assert energy(model, params, SPECIES, positions) == level_energies(model, params, SPECIES, positions)[-1]


@pytest.mark.parametrize("sum_levels", [True, False])
@pytest.mark.parametrize(("pass_aev", "pass_energy"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("levels", [(1,), (0, 1), (0, 1, 4)])
def test_gradients_of_a_chain_are_those_of_its_energies(
    levels: tuple[int, ...], pass_aev: bool, pass_energy: bool, sum_levels: bool
):
    model = chain(levels=levels).model_copy(
        update={"pass_aev": pass_aev, "pass_energy": pass_energy, "sum_levels": sum_levels}
    )
    params = params_of(model)
    networks = tuple(tree_map(lambda leaf: leaf[1], level) for level in params.networks)
    aev = torch.rand(model.aev.length, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    energies, gradients = chain_energies_and_gradients(model, networks, aev)
    assert torch.equal(energies, chain_energies(model, networks, aev))
    highest = highest_energy_and_gradient(model, networks, aev)
    assert torch.equal(highest[0], energies[-1])
    assert torch.equal(highest[1], gradients[-1])
    expected = jacrev(chain_energies, argnums=2)(model, networks, aev)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=BARE_ROUNDING)
    assert expected.abs().amax(dim=1).min() > 1e-3, "each level must feel its AEV"


def test_every_variant_is_another_model(make_positions: Positions):
    found = [written_out(chain(v), params_of(chain(v)), atoms(make_positions))[-1] for v in VARIANTS]
    assert np.diff(sorted(found)).min() > 1e-4


@each_variant
def test_a_levels_networks_are_as_wide_as_what_they_see(variant: str):
    model = chain(variant)
    d = model.aev.length
    wide = {"all": d + 1, "no sum": d + 1, "no energy": d, "AEV alone": d, "no AEV": 1, "energy alone": 1}[variant]
    assert [input_length(model, level) for level in range(3)] == [d, wide, wide]
    params = init_params(model, torch.Generator().manual_seed(0))
    assert [networks.weights[0].shape for networks in params.networks] == [(3, 6, d), (3, 6, wide), (3, 6, wide)]
    assert all(networks.weights[0].abs().max() <= 1 / math.sqrt(networks.weights[0].shape[2]) for networks in params[0])
    assert torch.equal(params.self_energies, torch.zeros(3, 3, dtype=torch.float64))


def test_one_level_is_the_lowest_of_a_chain(make_positions: Positions):
    one, positions = chain(levels=(0,)), atoms(make_positions)
    params = params_of(chain())
    alone = Params(params.networks[:1], params.self_energies[:1])
    expected = level_energies(chain(), params, SPECIES, positions)[:1]
    torch.testing.assert_close(level_energies(one, alone, SPECIES, positions), expected, rtol=0, atol=0)
    drawn, of_chain = (init_params(model, torch.Generator().manual_seed(4)).networks[0] for model in (one, chain()))
    assert all(torch.equal(a, b) for a, b in zip(drawn.weights + drawn.biases, sum(of_chain, ()), strict=True))


@each_variant
@pytest.mark.parametrize("changed", [1, 2])
def test_a_level_is_untouched_by_the_networks_above(make_positions: Positions, variant: str, changed: int):
    model, positions = chain(variant), atoms(make_positions)
    params, other = params_of(model), params_of(model, 1)
    mixed = params._replace(networks=params.networks[:changed] + other.networks[changed:])
    before, after = (level_energies(model, p, SPECIES, positions) for p in (params, mixed))
    assert torch.equal(before[:changed], after[:changed])
    assert (before[changed:] != after[changed:]).all()


@each_variant
def test_a_level_teaches_the_networks_below_through_what_goes_up(make_positions: Positions, variant: str):
    model = chain(variant)
    gradient = grad(energy, argnums=1)(model, params_of(model), SPECIES, atoms(make_positions))
    reached = [bool(networks.weights[0].any()) for networks in gradient.networks]
    assert reached == ([False, False, True] if variant == "AEV alone" else [True, True, True])
    assert gradient.self_energies.tolist() == [[0, 0, 0], [0, 0, 0], [2, 2, 1]]


def test_the_energy_handed_up_holds_no_self_energy(make_positions: Positions):
    model, positions = chain(), atoms(make_positions)
    params = params_of(model)
    before = level_energies(model, params, SPECIES, positions)
    for level in range(3):
        change = torch.zeros(3, 3, dtype=torch.float64)
        change[level] = torch.tensor([700.0, -3.0, 20.0])
        moved = params._replace(self_energies=SELF_ENERGIES + change)
        difference = level_energies(model, moved, SPECIES, positions) - before
        torch.testing.assert_close(difference, change @ COMPOSITION, rtol=0, atol=ROUNDING)


@given(seed=st.integers(0, 2**31))
def test_the_symmetries_of_space_change_no_level(make_positions: Positions, seed: int):
    generator = np.random.default_rng(seed)
    model, positions = chain(), make_positions(5, seed)
    rotation, shift = np.linalg.qr(generator.normal(size=(3, 3)))[0], generator.uniform(-20, 20, 3)
    order = torch.from_numpy(generator.permutation(5))
    moved = torch.from_numpy(positions @ rotation + shift)[order]
    before = level_energies(model, params_of(model), SPECIES, torch.from_numpy(positions))
    after = level_energies(model, params_of(model), SPECIES[order], moved)
    torch.testing.assert_close(after, before, rtol=0, atol=ROUNDING)


def test_vmap_over_positions_and_over_an_ensemble(make_positions: Positions):
    model = chain()
    many = torch.stack([atoms(make_positions, seed) for seed in range(4)])
    members = [params_of(model, seed) for seed in range(3)]
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *members)

    def of(params: Params, x: Tensor) -> Tensor:
        return level_energies(model, params, SPECIES, x)

    found = vmap(vmap(of, in_dims=(None, 0)), in_dims=(0, None))(stacked, many)
    expected = torch.stack([torch.stack([of(params, x) for x in many]) for params in members])
    assert found.shape == (3, 4, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
    assert len(found.unique()) == 36


@each_variant
def test_derivatives_of_each_level_are_central_differences(make_positions: Positions, variant: str):
    model, positions = chain(variant), atoms(make_positions, 1)
    # the self energies are constant, and would cost the differences six digits
    params = bare(params_of(model))
    moves = 1e-5 * torch.eye(15, dtype=torch.float64).reshape(15, 5, 3)

    def values(x: Tensor) -> Tensor:
        return level_energies(model, params, SPECIES, x)

    def slope(function: Callable[[Tensor], Tensor]) -> Tensor:
        """By each coordinate, last."""
        changes = [function(positions + move) - function(positions - move) for move in moves]
        return torch.stack(changes, dim=-1) / 2e-5

    gradient = jacrev(values)(positions)
    torch.testing.assert_close(gradient.flatten(1), slope(values), rtol=0, atol=DIFFERENCE_TOLERANCE)
    assert gradient.abs().amax(dim=(1, 2)).min() > 0.02, "made-up atoms must feel forces at each level"
    curvature = hessian(values)(positions).reshape(3, 15, 15)
    torch.testing.assert_close(curvature, curvature.mT, rtol=0, atol=BARE_ROUNDING)
    expected = slope(jacrev(values)).reshape(3, 15, 15)
    torch.testing.assert_close(curvature, expected, rtol=0, atol=DIFFERENCE_TOLERANCE)


def test_float32_networks_leave_self_energies_in_float64(make_positions: Positions):
    model, positions = chain(), atoms(make_positions)
    params = params_of(model)
    single = params._replace(networks=tree_map(Tensor.float, params.networks))
    found = level_energies(model, single, SPECIES, positions)
    assert found.dtype == torch.float64
    # float32 holds the sums of -4142 eV to 2.4e-4 eV only
    expected = level_energies(model, params, SPECIES, positions)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
