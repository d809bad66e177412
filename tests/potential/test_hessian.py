"""Hessians: against torch.func, central differences of forces, and the symmetries of a molecule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.data import atomic_masses, atomic_numbers
from ase.units import _amu, _c, _e
from scipy.optimize import least_squares
from torch import Tensor
from torch.func import grad, jacfwd, vmap
from torch.utils._pytree import tree_map

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.potential.energy import energy, init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.potential.forces import energy_and_forces
from pykinml_func.potential.hessian import hessian, hessian_vector_product, member_hessians
from pykinml_func.types import Networks, Params

TOLERANCE = 1e-11  # eV/Å² for each eV/Å² of the largest: rounding alone
DIFFERENCE_TOLERANCE = 1e-6  # eV/Å², central differences of forces with step 1e-5 Å
ROUNDING = 1e-10  # eV/Å²
WAVENUMBER = np.sqrt(_e / _amu) * 1e10 / (200 * np.pi * _c)
"""cm^-1 for the root of one eV/Å²/amu"""

ELEMENTS = ("C", "H", "O")
FORMULAS = ["CH4", "H", "OH", "H2CO", "HCCH", "OHCHC", "CHOH"]

Positioned = Callable[[int, int], np.ndarray]


def model_of(
    activations: tuple[str, ...] = ("gaussian", "tanh", "identity"), beta: float = 0.95, **levels: object
) -> ModelConfig:
    aev = AEVConfig(elements=ELEMENTS, n_radial=5, n_angular_radial=3, n_angular=4, beta=beta)
    return ModelConfig(aev=aev, neurons=(8, 5, 1), activations=activations, **levels)


def params_of(model: ModelConfig, seed: int = 3) -> Params:
    """Steeper than they are drawn, so that made-up atoms feel forces of about 1 eV/Å."""
    drawn = init_params(model, torch.Generator().manual_seed(seed))
    networks = (Networks(tuple(4 * weight for weight in level.weights), level.biases) for level in drawn.networks)
    return Params(tuple(networks), drawn.self_energies - 1000.0)


MODELS = {
    "one level": model_of(),
    "beta 1": model_of(beta=1.0),
    "silu": model_of(("silu", "silu", "identity")),
    "relu": model_of(("relu", "gaussian", "identity")),
    "no bend": model_of(("relu", "relu", "identity"), biases=False),
    "difference": model_of(baseline=0),
    "chain": model_of(fidelities=(0, 1, 5)),
    "chain of energies": model_of(fidelities=(0, 1), pass_aev=False, sum_levels=False),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def structures_of(make_positions: Positioned) -> list[tuple[Tensor, Tensor]]:
    """Species and positions."""
    kinds = [[ELEMENTS.index(s) for s in molecule_of(formula)] for formula in FORMULAS]
    return [(torch.tensor(k), torch.from_numpy(make_positions(len(k), 7))) for k in kinds]


def molecule_of(formula: str) -> list[str]:
    return list(formula.replace("H4", "HHHH").replace("H2", "HH"))


def by_torch(model: ModelConfig, params: Params, species: Tensor, positions: Tensor) -> Tensor:
    return jacfwd(grad(lambda moved: energy(model, params, species, moved)))(positions)


@each_model
def test_is_the_second_derivative_that_torch_finds(make_positions: Positioned, model: ModelConfig):
    params = params_of(model)
    largest = 0.0
    for structure in structures_of(make_positions):
        found, expected = hessian(model, params, *structure), by_torch(model, params, *structure)
        assert found.dtype == torch.float64 and found.shape == expected.shape
        largest = max(largest, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, largest))
    assert largest > 0.3, "made-up atoms must feel each other"


@pytest.mark.parametrize("name", ["one level", "beta 1", "chain"])
def test_is_the_central_difference_of_forces(make_positions: Positioned, name: str):
    model, step = MODELS[name], 1e-5
    params = params_of(model)
    for species, positions in structures_of(make_positions):
        n = len(species)
        moves = step * torch.eye(3 * n, dtype=torch.float64).reshape(-1, n, 3)
        forces = vmap(lambda x, s=species: energy_and_forces(model, params, s, x)[1])(
            torch.cat([positions + moves, positions - moves])
        )
        expected = -(forces[: 3 * n] - forces[3 * n :]) / (2 * step)
        found = hessian(model, params, species, positions)
        np.testing.assert_allclose(found.flatten(0, 1), expected, rtol=0, atol=DIFFERENCE_TOLERANCE)


@each_model
def test_symmetry_and_the_sum_rules(make_positions: Positioned, model: ModelConfig):
    """Moved as a whole a molecule feels no other forces, and turned as a whole it feels the same ones, turned."""
    params = params_of(model)
    for species, positions in structures_of(make_positions):
        found = hessian(model, params, species, positions)
        np.testing.assert_allclose(found, found.permute(2, 3, 0, 1), rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(found.sum(dim=2), 0, atol=ROUNDING)
        gradient = -energy_and_forces(model, params, species, positions)[1]
        for axis in torch.eye(3, dtype=torch.float64):
            turned = torch.linalg.cross(axis.expand_as(positions), positions)
            change = torch.linalg.cross(axis.expand_as(gradient), gradient)
            np.testing.assert_allclose(torch.einsum("iajb,jb->ia", found, turned), change, rtol=0, atol=ROUNDING)


def test_turns_with_the_molecule_and_with_the_order_of_its_atoms(make_positions: Positioned):
    model = MODELS["chain"]
    params, (species, positions) = params_of(model), structures_of(make_positions)[3]
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    order = torch.tensor([2, 0, 3, 1])
    before = hessian(model, params, species, positions)
    after = hessian(model, params, species[order], positions[order] @ turn + 50.0)
    expected = torch.einsum("iajb,ac,bd->icjd", before[order][:, :, order], turn, turn)
    np.testing.assert_allclose(after, expected, rtol=0, atol=ROUNDING)


def stationary(model: ModelConfig, params: Params, species: Tensor, positions: Tensor, axes: int) -> Tensor:
    """A structure without forces, downhill of their squares; atoms move along the first `axes` axes alone."""

    def moved(x: np.ndarray) -> Tensor:
        return torch.cat([torch.from_numpy(x.reshape(-1, axes)), torch.zeros(len(species), 3 - axes)], dim=1)

    def forces(x: np.ndarray) -> np.ndarray:
        return energy_and_forces(model, params, species, moved(x))[1][:, :axes].flatten().numpy()

    def slope(x: np.ndarray) -> np.ndarray:
        found = hessian(model, params, species, moved(x))[:, :axes, :, :axes]
        return -found.reshape(found.shape[0] * axes, -1).numpy()

    options = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    return moved(least_squares(forces, positions[:, :axes].flatten(), slope, **options).x)


def wavenumbers(found: Tensor, species: Tensor) -> np.ndarray:
    masses = atomic_masses[[atomic_numbers[ELEMENTS[kind]] for kind in species]].repeat(3)
    squares = np.linalg.eigvalsh(found.flatten(2).flatten(0, 1).numpy() / np.sqrt(np.outer(masses, masses)))
    return WAVENUMBER * np.sqrt(np.abs(squares))


@pytest.mark.parametrize(
    ("name", "axes", "still", "seed"), [("H2CO", 3, 6, 7), ("H2O", 2, 6, 5), ("C2H2", 1, 5, 7), ("CO", 1, 5, 7)]
)
@pytest.mark.parametrize("beta", [0.95, 1.0])
def test_a_molecule_at_rest_turns_and_moves_freely(name: str, axes: int, still: int, seed: int, beta: float):
    """Six modes of no wavenumber, five where it is linear: also at beta = 1, where what the cusp adds is left out."""
    model, atoms = model_of(beta=beta), molecule(name)
    params, species = params_of(model, seed), torch.tensor([ELEMENTS.index(s) for s in atoms.symbols])
    columns = np.argsort(-np.ptp(atoms.positions, axis=0))  # the longest extent first
    positions = stationary(model, params, species, torch.from_numpy(atoms.positions[:, columns]), axes)
    forces = energy_and_forces(model, params, species, positions)[1]
    assert forces.abs().max() < 1e-9, "this start must lead to a stationary point"
    found = np.sort(wavenumbers(hessian(model, params, species, positions), species))
    assert found[:still].max() < 1.0, "at a stationary point nothing holds a molecule"
    assert found[still] > 10


@pytest.mark.parametrize("beta", [0.95, 1.0])
def test_straight_and_lonely_atoms_have_finite_hessians(beta: float):
    model = model_of(beta=beta)
    params, straight = params_of(model), torch.zeros(4, 3, dtype=torch.float64)
    straight[:, 2] = torch.tensor([0, 1.2, -1.06, 2.26])
    species = torch.tensor([0, 0, 1, 1])
    found = hessian(model, params, species, straight)
    assert found.isfinite().all() and found[:, 2, :, 2].abs().max() > 0.1
    # by symmetry what moves along the axis and across it do not mix, and both ways across are one
    np.testing.assert_allclose(found[:, 2, :, :2], 0, atol=ROUNDING)
    np.testing.assert_allclose(found[:, 0, :, 0], found[:, 1, :, 1], rtol=0, atol=ROUNDING)
    assert not hessian(model, params, species[:1], straight[:1]).any()
    apart = hessian(model, params, species[:2], torch.tensor([[0.0, 0, 0], [0, 0, 50]], dtype=torch.float64))
    assert not apart.any()


def test_many_structures_at_once(make_positions: Positioned):
    model, species = MODELS["chain"], torch.tensor([0, 1, 2, 1])
    params = params_of(model)
    positions = torch.from_numpy(np.stack([make_positions(4, seed) for seed in range(5)]))
    together = vmap(lambda x: hessian(model, params, species, x))(positions)
    for one, x in zip(together, positions, strict=True):
        torch.testing.assert_close(one, hessian(model, params, species, x), rtol=0, atol=ROUNDING)


def test_every_member_and_their_mean(make_positions: Positioned):
    model, (species, positions) = MODELS["one level"], structures_of(make_positions)[3]
    members = [params_of(model, seed) for seed in range(3)]
    found = member_hessians(model, stack_members(members), species, positions)
    for one, params in zip(found, members, strict=True):
        torch.testing.assert_close(one, hessian(model, params, species, positions), rtol=0, atol=ROUNDING)

    def mean_energy(moved: Tensor) -> Tensor:
        return torch.stack([energy(model, params, species, moved) for params in members]).mean()

    expected = jacfwd(grad(mean_energy))(positions)
    torch.testing.assert_close(found.mean(dim=0), expected, rtol=0, atol=ROUNDING)
    assert (found[0] - found[1]).abs().max() > 0.1


@each_model
def test_products_with_vectors(make_positions: Positioned, model: ModelConfig):
    params, (species, positions) = params_of(model), structures_of(make_positions)[4]
    vectors = torch.randn(3, *positions.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.einsum("iajb,kjb->kia", hessian(model, params, species, positions), vectors)
    found = vmap(lambda vector: hessian_vector_product(model, params, species, positions, vector))(vectors)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
    one = hessian_vector_product(model, params, species, positions, vectors[0])
    torch.testing.assert_close(one, expected[0], rtol=0, atol=ROUNDING)


def test_single_precision_keeps_its_digits_far_from_the_origin(make_positions: Positioned):
    model, (species, positions) = MODELS["one level"], structures_of(make_positions)[3]
    params = params_of(model)
    single = Params(tree_map(lambda leaf: leaf.float(), params.networks), params.self_energies)
    expected = hessian(model, params, species, positions)
    found = hessian(model, single, species, positions + 1e5)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_an_unknown_element_is_named():
    model = MODELS["one level"]
    with pytest.raises(ValueError, match="species must be indices into the 3 elements"):
        hessian(model, params_of(model), torch.tensor([0, 5]), torch.rand(2, 3, dtype=torch.float64))
