"""AEVs against aevmod, against the equations in 50 digits, and against the symmetries of space."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import by_aevmod, reference_jacobian, reference_values
from torch import Tensor
from torch.func import jacrev, vmap

from pykinml_func import aev_jacobians
from pykinml_func.config import AEVConfig
from pykinml_func.data.formats.database import read_databases
from pykinml_func.potential.aev import aevs

VALUE_TOLERANCE = 1e-12  # of sums of up to 36 terms below 1, each good to a few 1e-16
JACOBIAN_TOLERANCE = 1e-10  # 1/Å; derivatives reach 10 and cancel
TURNED_TOLERANCE = 1e-9  # 1/Å: a rotation rounds collinear atoms off their line by 1e-16 Å
DIFFERENCE_TOLERANCE = 1e-7  # 1/Å; central differences with step 1e-5 Å: 1e-10 times third derivatives up to 1e3
LEAST_SINE = 1e-3
"""aevmod takes theta by acos, whose derivative is off by 1e-16/sin² near 0 and pi: here, by 1e-10."""

Positions = Callable[[int, int], np.ndarray]

SMALL = AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4)
SETTINGS = [
    AEVConfig(elements=("C", "H", "O")),
    AEVConfig(elements=("C", "H", "O"), beta=1.0),
    AEVConfig(elements=("H", "O", "C"), beta=0.9, n_radial=7, n_angular_radial=3, n_angular=5),
    AEVConfig(elements=("C", "H", "O"), radial_cutoff=3.0, angular_cutoff=2.0),
    AEVConfig(elements=("C", "H", "O"), radial_cutoff=2.5, angular_cutoff=4.5, n_radial=1, n_angular=1),
]
GIVEN_GRIDS = {
    "ani": AEVConfig(
        elements=("H", "C", "O"),
        angular_cutoff=3.5,
        radial_eta=16.0,
        radial_shifts=(0.9, 1.16875, 1.4375, 2.2, 3.1),
        radial_prefactor=0.25,
        angular_eta=8.0,
        angular_shifts=(0.9, 1.55, 2.2, 2.85),
        angular_sections=(0.19634954, 0.58904862, 0.9817477, 1.3744468, 1.7671459, 2.1598449, 2.552544, 2.9452431),
        angular_prefactor=2.0,
        zeta=32.0,
    ),
    "odd zeta": AEVConfig(elements=("H", "C", "O"), zeta=14.1, angular_sections=(0.4, 2.0), angular_shifts=(0.9, 1.5)),
}


def autodiff(config: AEVConfig, species: Tensor, positions: Tensor) -> Tensor:
    """The derivatives that `energy` takes."""
    return jacrev(aevs, argnums=2)(config, species, positions)


both_derivatives = pytest.mark.parametrize("derivative", [aev_jacobians, autodiff])


def native(function: Callable[..., Tensor], config: AEVConfig, species: list[int], positions: np.ndarray) -> np.ndarray:
    """`aevs` or `aev_jacobians` of positions (G,n,3)."""
    indices = torch.tensor(species)
    return vmap(lambda x: function(config, indices, x))(torch.from_numpy(positions)).numpy()


def central_differences(config: AEVConfig, species: list[int], positions: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """(n,D,n,3)"""
    moves = step * np.eye(positions.size).reshape(-1, *positions.shape)
    change = native(aevs, config, species, positions + moves) - native(aevs, config, species, positions - moves)
    return np.moveaxis(change / (2 * step), 0, -1).reshape(*change.shape[1:], *positions.shape)


def least_sines(positions: np.ndarray, cutoff: float) -> np.ndarray:
    """(G,n): the smallest sin(theta) over pairs of each centre's neighbours. positions: (G,n,3)."""
    n = positions.shape[1]
    vectors = positions[:, None] - positions[:, :, None]
    distances = np.linalg.norm(vectors, axis=-1)
    near = (distances > 0) & (distances <= cutoff)
    units = vectors / np.where(near, distances, 1)[..., None]
    sines = np.ones(positions.shape[:2])
    for j, k in combinations(range(n), 2):
        sine = np.linalg.norm(np.cross(units[:, :, j], units[:, :, k]), axis=-1)
        sines = np.where(near[:, :, j] & near[:, :, k], np.minimum(sines, sine), sines)
    return sines


def database(shared: Path, formula: str, every: int = 1) -> tuple[list[int], np.ndarray]:
    """Species of one structure (C 0, H 1), and all positions (G,n,3), of which each `every`th."""
    structures = read_databases([shared / "data" / f"{formula}.db"], [1])
    n = int(structures.sizes[0])
    return [0 if z == 6 else 1 for z in structures.numbers[:n]], structures.positions.reshape(-1, n, 3)[::every]


@pytest.mark.parametrize("beta", [0.95, 1.0])
@pytest.mark.parametrize(("formula", "every"), [("C2H2", 1), ("C2H3", 1), ("C3H2", 1), ("C3H3", 1), ("C5H5", 35)])
def test_real_structures_match_aevmod(shared: Path, formula: str, every: int, beta: float):
    config = AEVConfig(elements=("C", "H"), beta=beta)
    species, positions = database(shared, formula)
    values = native(aevs, config, species, positions)
    expected = by_aevmod("eval", config, species, positions)
    trusted = np.full(values.shape[:2], True)
    if beta == 1.0:
        trusted = least_sines(positions, config.angular_cutoff) > LEAST_SINE
    np.testing.assert_allclose(values[trusted], expected[trusted], rtol=0, atol=VALUE_TOLERANCE)

    # eval_Jac is no gradient unless beta is 1
    method = "eval_Jac" if beta == 1.0 else "eval_Jac_sac"
    jacobians = native(aev_jacobians, config, species, positions[::every])
    expected = by_aevmod(method, config, species, positions[::every])
    np.testing.assert_allclose(jacobians[trusted[::every]], expected[trusted[::every]], rtol=0, atol=JACOBIAN_TOLERANCE)
    assert trusted.sum() >= trusted.size - 4, "the threshold must leave out only the few collinear centres"


@pytest.mark.parametrize("formula", ["C2H2", "C3H2", "C3H3"])
def test_nearly_collinear_real_atoms_match_50_digits_where_aevmod_does_not(shared: Path, formula: str):
    config = AEVConfig(elements=("C", "H"), beta=1.0)
    species, positions = database(shared, formula)
    collinear = least_sines(positions, config.angular_cutoff) < LEAST_SINE
    offending = [(positions[m], atom) for m, atom in zip(*np.nonzero(collinear), strict=True)]
    assert offending
    aevmod_errors = []
    for x, atom in offending:
        value, jacobian = native(aevs, config, species, x[None])[0], native(aev_jacobians, config, species, x[None])[0]
        exact = reference_jacobian(config, species, x, atom)
        np.testing.assert_allclose(value, reference_values(config, species, x), rtol=0, atol=VALUE_TOLERANCE)
        np.testing.assert_allclose(jacobian[atom], exact, rtol=0, atol=JACOBIAN_TOLERANCE)
        aevmod_errors.append(np.abs(by_aevmod("eval_Jac", config, species, x[None])[0, atom] - exact).max())
    assert max(aevmod_errors) > JACOBIAN_TOLERANCE, "aevmod agrees by now: compare with it everywhere instead"


@both_derivatives
def test_nearly_collinear_atoms_match_50_digits(derivative: Callable[..., Tensor]):
    config = SMALL.model_copy(update={"beta": 1.0})
    positions = np.array([[0.0, 1e-6, 0.0], [1.1, 0.0, 0.0], [-1.2, 0.0, 0.0], [2.3, 2e-6, 1e-6]])
    species = [0, 1, 0, 2]
    value, jacobian = (
        native(aevs, config, species, positions[None])[0],
        native(derivative, config, species, positions[None])[0],
    )
    np.testing.assert_allclose(value, reference_values(config, species, positions), rtol=0, atol=VALUE_TOLERANCE)
    for atom in range(4):
        exact = reference_jacobian(config, species, positions, atom)
        np.testing.assert_allclose(jacobian[atom], exact, rtol=0, atol=JACOBIAN_TOLERANCE)


@pytest.mark.parametrize("config", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("species", [[0, 1, 2, 1, 0, 2, 2, 1], [1, 1, 0, 0], [2, 0], [1]], ids=len)
def test_made_up_structures_of_three_elements_match_aevmod(
    config: AEVConfig, species: list[int], make_positions: Positions
):
    positions = np.stack([make_positions(len(species), seed) for seed in range(6)])
    np.testing.assert_allclose(
        native(aevs, config, species, positions),
        by_aevmod("eval", config, species, positions),
        rtol=0,
        atol=VALUE_TOLERANCE,
    )
    np.testing.assert_allclose(
        native(aev_jacobians, config, species, positions),
        by_aevmod("eval_Jac_sac", config, species, positions),
        rtol=0,
        atol=JACOBIAN_TOLERANCE,
    )


@pytest.mark.parametrize("config", GIVEN_GRIDS.values(), ids=GIVEN_GRIDS)
def test_given_grids_follow_the_equations(config: AEVConfig, make_positions: Positions):
    species, positions = [0, 1, 2, 1, 0], make_positions(5, 3)
    value = native(aevs, config, species, positions[None])[0]
    np.testing.assert_allclose(value, reference_values(config, species, positions), rtol=0, atol=VALUE_TOLERANCE)
    jacobian = native(aev_jacobians, config, species, positions[None])[0]
    np.testing.assert_allclose(
        jacobian[1], reference_jacobian(config, species, positions, 1), rtol=0, atol=JACOBIAN_TOLERANCE
    )


LINEAR = np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [-1.06, 0.0, 0.0], [2.26, 0.0, 0.0]])


@both_derivatives
@pytest.mark.parametrize("beta", [0.95, 1.0])
def test_derivatives_of_collinear_atoms_are_those_of_central_differences(
    derivative: Callable[..., Tensor], beta: float
):
    # at beta = 1 the sine has a cusp there, of which the symmetric derivative is 0
    config, species = SMALL.model_copy(update={"beta": beta}), [0, 0, 1, 1]
    jacobian = native(derivative, config, species, LINEAR[None])[0]
    expected = central_differences(config, species, LINEAR)
    np.testing.assert_allclose(jacobian, expected, rtol=0, atol=DIFFERENCE_TOLERANCE)


@both_derivatives
@pytest.mark.parametrize("beta", [0.95, 1.0])
def test_derivatives_of_collinear_atoms_are_finite_in_any_direction(derivative: Callable[..., Tensor], beta: float):
    # rounding bends tilted atoms by 1e-16, where a derivative by acos would divide by next to nothing
    config, species = SMALL.model_copy(update={"beta": beta}), [0, 0, 1, 1]
    orthogonal = np.linalg.qr(np.random.default_rng(5).normal(size=(20, 3, 3)))[0]
    turned = np.concatenate([np.eye(3)[None], orthogonal])
    straight, *tilted = native(derivative, config, species, LINEAR @ turned)
    back = np.einsum("gndmx,gyx->gndmy", np.array(tilted), orthogonal)
    np.testing.assert_allclose(back, np.broadcast_to(straight, back.shape), rtol=0, atol=TURNED_TOLERANCE)


@both_derivatives
def test_sections_of_any_exponent_are_finite_for_collinear_atoms(derivative: Callable[..., Tensor]):
    # the base of the power vanishes there, and rounding makes it negative in some orientations
    config, species = SMALL.model_copy(update={"beta": 1.0, "zeta": 14.1}), [0, 0, 1, 1]
    turned = LINEAR @ np.linalg.qr(np.random.default_rng(6).normal(size=(50, 3, 3)))[0]
    assert np.isfinite(native(aevs, config, species, turned)).all()
    assert np.isfinite(native(derivative, config, species, turned)).all()


@both_derivatives
@pytest.mark.parametrize("limit", ["radial_cutoff", "angular_cutoff"])
@pytest.mark.parametrize("beyond", [-1e-9, -1e-15, 0.0, 1e-15, 1e-9])
def test_values_and_slopes_vanish_at_the_cutoff(derivative: Callable[..., Tensor], limit: str, beyond: float):
    config, species = SMALL, [0, 1, 2]
    reach = getattr(config, limit)
    distance = np.nextafter(reach, np.sign(beyond) * np.inf) if abs(beyond) == 1e-15 else reach + beyond
    bent = np.array([[0.0, 0.0, 0.0], [0.0, 1.1, 0.0], [distance, 0.0, 0.0]])
    jacobian = native(derivative, config, species, bent[None])[0]
    assert np.isfinite(jacobian).all()
    if limit == "radial_cutoff":  # atom 2 is as good as gone for atom 0: the cutoff falls as (distance - reach)²
        oxygen = slice(2 * config.n_radial, 3 * config.n_radial)
        assert np.abs(native(aevs, config, species, bent[None])[0, 0, oxygen]).max() < 1e-15
        assert np.abs(jacobian[0, oxygen]).max() < 1e-7
    else:
        angular = slice(3 * config.n_radial, None)
        assert np.abs(native(aevs, config, species, bent[None])[0, 0, angular]).max() < 1e-15
        assert np.abs(jacobian[0, angular]).max() < 1e-7


@given(seed=st.integers(0, 2**31), which=st.sampled_from(["radial_cutoff", "angular_cutoff"]))
def test_an_atom_crossing_a_cutoff_changes_nothing_suddenly(make_positions: Positions, seed: int, which: str):
    positions, species = make_positions(5, seed), [0, 1, 1, 2, 0]
    direction = positions[4] - positions[0]
    direction /= np.linalg.norm(direction)
    width = 1e-6  # Å
    sides = np.stack([positions, positions])
    sides[:, 4] = positions[0] + direction * (getattr(SMALL, which) + width * np.array([[-1.0], [1.0]]))
    values, jacobians = native(aevs, SMALL, species, sides), native(aev_jacobians, SMALL, species, sides)
    slope, curvature = 30, 300  # 1/Å and 1/Å²: more than any term has unless atoms touch
    if all(np.linalg.norm(sides[0, 4] - sides[0, other]) > 0.5 for other in range(4)):
        assert np.abs(values[1] - values[0]).max() < slope * 2 * width
        assert np.abs(jacobians[1] - jacobians[0]).max() < curvature * 2 * width


def test_lonely_atoms_have_empty_surroundings():
    alone = torch.zeros(1, 3, dtype=torch.float64)
    assert torch.equal(aevs(SMALL, torch.tensor([1]), alone), torch.zeros(1, SMALL.length, dtype=torch.float64))
    assert torch.equal(
        aev_jacobians(SMALL, torch.tensor([1]), alone), torch.zeros(1, SMALL.length, 1, 3, dtype=torch.float64)
    )


def test_two_atoms_see_each_other_radially():
    r = 1.3
    pair = torch.tensor([[0.2, 0.0, 0.0], [0.2, 0.0, r]], dtype=torch.float64)
    value = aevs(SMALL, torch.tensor([0, 1]), pair).numpy()
    shifts = np.array(SMALL.radial_shifts)
    expected = np.exp(-SMALL.radial_eta * (r - shifts) ** 2) * 0.5 * (1 + np.cos(np.pi * r / SMALL.radial_cutoff))
    carbon, hydrogen = slice(0, SMALL.n_radial), slice(SMALL.n_radial, 2 * SMALL.n_radial)
    np.testing.assert_allclose(value[0, hydrogen], expected, atol=VALUE_TOLERANCE)
    np.testing.assert_allclose(value[1, carbon], expected, atol=VALUE_TOLERANCE)
    assert np.count_nonzero(value) == 2 * SMALL.n_radial


@given(seed=st.integers(0, 2**31))
def test_rotation_reflection_and_translation_change_nothing(make_positions: Positions, seed: int):
    generator = np.random.default_rng(seed)
    positions, species = make_positions(6, seed), generator.integers(0, 3, 6).tolist()
    orthogonal = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    moved = positions @ orthogonal + generator.uniform(-20, 20, 3)
    before, after = native(aevs, SMALL, species, np.stack([positions, moved]))
    np.testing.assert_allclose(after, before, rtol=0, atol=VALUE_TOLERANCE)


@given(seed=st.integers(0, 2**31))
def test_atom_order_only_permutes_rows(make_positions: Positions, seed: int):
    generator = np.random.default_rng(seed)
    positions, species = make_positions(6, seed), generator.integers(0, 3, 6)
    order = generator.permutation(6)
    before = native(aevs, SMALL, species.tolist(), positions[None])[0]
    after = native(aevs, SMALL, species[order].tolist(), positions[order][None])[0]
    np.testing.assert_allclose(after, before[order], rtol=0, atol=VALUE_TOLERANCE)


def test_float32_stays_float32(make_positions: Positions):
    positions, species = torch.from_numpy(make_positions(6, 1)), torch.tensor([0, 1, 2, 1, 0, 2])
    single = aevs(SMALL, species, positions.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), aevs(SMALL, species, positions), rtol=0, atol=2e-5)


@pytest.mark.parametrize("function", [aevs, aev_jacobians])
@pytest.mark.parametrize("index", [-1, 3])
def test_a_species_outside_the_elements_is_refused(function: Callable[..., Tensor], index: int):
    with pytest.raises(ValueError, match=r"indices into the 3 elements \('C', 'H', 'O'\), got"):
        function(SMALL, torch.tensor([0, index]), torch.rand(2, 3, dtype=torch.float64))
