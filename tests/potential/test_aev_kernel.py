"""The compiled AEVs and their derivatives: those of the equations, of torch and of aevmod, in any arrangement."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import by_aevmod, reference_jacobian, reference_values
from torch import Tensor
from torch.func import grad, jacrev, jvp, vjp, vmap

from pykinml_func import aev_jacobians, aevs
from pykinml_func.config import AEVConfig
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.aev_kernel import Atoms
from pykinml_func.threads import using_threads

pytestmark = pytest.mark.skipif(not aev_kernel.available(), reason="the compiled AEVs were not built")

VALUE_TOLERANCE = 1e-12
SLOPE_TOLERANCE = 1e-10  # 1/Å
DIFFERENCE_TOLERANCE = 1e-7  # 1/Å; central differences with step 1e-5 Å
SINGLE_TOLERANCE = 2e-5  # of float32: 6e-8 of the coordinates times slopes up to some hundred
SINGLE_SLOPE_TOLERANCE = 1e-3  # 1/Å; and of slopes times curvatures

CHO = {"elements": ("C", "H", "O"), "n_radial": 5, "n_angular_radial": 3, "n_angular": 4}
ANI = {
    "elements": ("H", "C", "N", "O"),
    "angular_cutoff": 3.5,
    "radial_eta": 16.0,
    "radial_shifts": (0.9, 1.16875, 1.4375, 2.2, 3.1),
    "radial_prefactor": 0.25,
    "angular_eta": 8.0,
    "angular_shifts": (0.9, 1.55, 2.2, 2.85),
    "angular_sections": (0.19634954, 0.58904862, 0.9817477, 1.3744468, 1.7671459, 2.1598449, 2.552544, 2.9452431),
    "angular_prefactor": 2.0,
    "zeta": 32.0,
}
CONFIGS = {
    "rule": AEVConfig(elements=("C", "H", "O")),
    "beta 1": AEVConfig(**CHO, beta=1.0),
    "one element": AEVConfig(elements=("H",)),
    "two elements": AEVConfig(elements=("H", "C"), beta=0.9, n_radial=7, n_angular_radial=3, n_angular=5),
    "four elements": AEVConfig(**{**CHO, "elements": ("C", "H", "N", "O"), "n_angular": 11}),
    "one of each": AEVConfig(elements=("C", "H"), n_radial=1, n_angular_radial=1, n_angular=1),
    "sixteen sections": AEVConfig(elements=("C", "H"), n_angular=16),
    "ANI": AEVConfig(**ANI),
    "zeta 1": AEVConfig(**CHO, zeta=1.0),
    "zeta 7": AEVConfig(**CHO, zeta=7.0, beta=1.0),
    "zeta 14.1": AEVConfig(**CHO, zeta=14.1),
    "zeta 1.5": AEVConfig(**CHO, zeta=1.5, angular_prefactor=0.5),
    "wide angular": AEVConfig(**CHO, radial_cutoff=2.5, angular_cutoff=4.5),
    "short": AEVConfig(**CHO, radial_cutoff=1.8, angular_cutoff=1.3),
}
SIZES = (6, 1, 9, 2, 3, 5)

Positions = Callable[[int, int], np.ndarray]
Dense = Callable[..., np.ndarray]

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


class Molecule(NamedTuple):
    species: Tensor
    positions: Tensor


def random_molecules(
    make_positions: Positions, config: AEVConfig, sizes: Sequence[int] = SIZES, seed: int = 0
) -> list[Molecule]:
    generator = np.random.default_rng(seed)
    return [
        Molecule(
            torch.from_numpy(generator.integers(0, len(config.elements), size)),
            torch.from_numpy(make_positions(size, 100 * seed + number)),
        )
        for number, size in enumerate(sizes)
    ]


class Packed(NamedTuple):
    atoms: Atoms
    positions: Tensor
    """(R,3), not a number where there is no atom"""
    rows: tuple[Tensor, ...]
    """of the atoms of each molecule"""


def packed(molecules: Sequence[Molecule], padding: int = 7, seed: int = 0) -> Packed:
    """The molecules' atoms in rows in random order, some of which hold none; one more structure without atoms."""
    sizes = [len(molecule.species) for molecule in molecules]
    n = sum(sizes)
    order = torch.randperm(n + padding, generator=torch.Generator().manual_seed(seed))
    rows = order[:n].split(sizes)
    positions = torch.full((n + padding, 3), torch.nan, dtype=molecules[0].positions.dtype)
    species = torch.zeros(n + padding, dtype=torch.int64)
    for molecule, own in zip(molecules, rows, strict=True):
        positions[own], species[own] = molecule.positions, molecule.species
    offsets = torch.tensor([0, *np.cumsum(sizes), n])
    return Packed(Atoms(order, offsets, species), positions, rows)


def alone(molecule: Molecule) -> tuple[Atoms, Tensor]:
    n = len(molecule.species)
    return Atoms(torch.arange(n), torch.tensor([0, n]), molecule.species), molecule.positions


def random_like(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def push(config: AEVConfig, atoms: Atoms, positions: Tensor, velocities: Tensor) -> Tensor:
    """velocities: (L,R,3). Returns (L,R,D)."""
    return torch.ops.pykinml.push_aevs(positions, *atoms, velocities, *aev_kernel._grid(config))


def compiled_jacobian(make_dense: Dense, config: AEVConfig, molecule: Molecule) -> np.ndarray:
    blocks = aev_kernel.pair_jacobians(config, *alone(molecule)).numpy()
    return make_dense(config, molecule.species.numpy(), blocks)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


@each_config
def test_values_are_those_of_torch_in_any_rows(make_positions: Positions, config: AEVConfig):
    molecules = random_molecules(make_positions, config)
    atoms, positions, rows = packed(molecules)
    found = aev_kernel.aevs(config, atoms, positions)
    for molecule, own in zip(molecules, rows, strict=True):
        assert_close(found[own], aevs(config, *molecule), VALUE_TOLERANCE)
    empty = torch.ones(len(found), dtype=torch.bool)
    empty[torch.cat(rows)] = False
    assert empty.sum() == 7
    assert not found[empty].any(), "a row without an atom holds zeros"


@each_config
def test_derivatives_are_those_of_torch_in_any_rows(make_positions: Positions, make_dense: Dense, config: AEVConfig):
    molecules = random_molecules(make_positions, config)
    atoms, positions, rows = packed(molecules)
    gradients = random_like(3, len(positions), config.length)
    velocities = random_like(2, len(positions), 3, seed=1)
    pulled = aev_kernel.pull(config, atoms, positions, gradients)
    pushed = push(config, atoms, positions, velocities)
    blocks = aev_kernel.pair_jacobians(config, atoms, positions).split([len(own) * (len(own) - 1) for own in rows])
    for molecule, own, of_pairs in zip(molecules, rows, blocks, strict=True):
        jacobian = aev_jacobians(config, *molecule)
        assert_close(make_dense(config, molecule.species.numpy(), of_pairs.numpy()), jacobian, SLOPE_TOLERANCE)
        _, pull = vjp(lambda x, s=molecule.species: aevs(config, s, x), molecule.positions)
        for level in range(3):
            assert_close(pulled[level, own], pull(gradients[level, own])[0], 10 * SLOPE_TOLERANCE)
        for level in range(2):
            expected = torch.einsum("ndax,ax->nd", jacobian, velocities[level, own])
            assert_close(pushed[level, own], expected, 10 * SLOPE_TOLERANCE)
    empty = torch.ones(len(positions), dtype=torch.bool)
    empty[torch.cat(rows)] = False
    assert not pulled[:, empty].any()
    assert not pushed[:, empty].any()


@pytest.mark.parametrize("name", ["rule", "two elements", "wide angular"])
@pytest.mark.parametrize("beta", [0.95, 1.0])
def test_values_and_derivatives_are_those_of_aevmod(
    make_positions: Positions, make_dense: Dense, name: str, beta: float
):
    config = CONFIGS[name].model_copy(update={"beta": beta})
    for molecule in random_molecules(make_positions, config, sizes=(8, 4, 2, 1), seed=2):
        arguments = (config, molecule.species.tolist(), molecule.positions.numpy()[None])
        values = aev_kernel.aevs(config, *alone(molecule))
        assert_close(values, by_aevmod("eval", *arguments)[0], VALUE_TOLERANCE)
        jacobian = compiled_jacobian(make_dense, config, molecule)
        assert_close(jacobian, by_aevmod("eval_Jac_sac", *arguments)[0], SLOPE_TOLERANCE)


@pytest.mark.parametrize("name", ["ANI", "zeta 14.1"])
def test_derivatives_are_central_differences(make_positions: Positions, make_dense: Dense, name: str):
    config, step = CONFIGS[name], 1e-5
    (molecule,) = random_molecules(make_positions, config, sizes=(6,), seed=3)
    atoms, positions = alone(molecule)
    moves = step * torch.eye(18, dtype=torch.float64).reshape(18, 6, 3)
    changes = [
        aev_kernel.aevs(config, atoms, positions + m) - aev_kernel.aevs(config, atoms, positions - m) for m in moves
    ]
    expected = torch.stack(changes, dim=-1).reshape(6, config.length, 6, 3) / (2 * step)
    assert expected.abs().max() > 0.5, "made-up atoms must change each other's AEVs"
    assert_close(compiled_jacobian(make_dense, config, molecule), expected, DIFFERENCE_TOLERANCE)
    gradients, velocities = random_like(2, 6, config.length), random_like(2, 6, 3)
    pulled = aev_kernel.pull(config, atoms, positions, gradients)
    assert_close(pulled, torch.einsum("lnd,ndax->lax", gradients, expected), 10 * DIFFERENCE_TOLERANCE)
    pushed = push(config, atoms, positions, velocities)
    assert_close(pushed, torch.einsum("ndax,lax->lnd", expected, velocities), 10 * DIFFERENCE_TOLERANCE)


@given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(CONFIGS)), size=st.integers(2, 12))
def test_any_molecule_is_that_of_torch_and_feels_no_force_as_a_whole(
    make_positions: Positions, seed: int, name: str, size: int
):
    config = CONFIGS[name]
    (molecule,) = random_molecules(make_positions, config, (size,), seed)
    atoms, positions = alone(molecule)
    values, pull = vjp(lambda x: aevs(config, molecule.species, x), positions)
    gradients, velocities = random_like(1, size, config.length, seed=seed), random_like(1, size, 3, seed=seed)
    pulled = aev_kernel.pull(config, atoms, positions, gradients)
    assert_close(aev_kernel.aevs(config, atoms, positions), values, VALUE_TOLERANCE)
    assert_close(pulled[0], pull(gradients[0])[0], 10 * SLOPE_TOLERANCE)
    assert_close(pulled.sum(dim=1), 0, SLOPE_TOLERANCE)
    assert_close(torch.linalg.cross(positions, pulled[0]).sum(dim=0), 0, 10 * SLOPE_TOLERANCE)
    pushed = push(config, atoms, positions, velocities)
    assert (pushed * gradients).sum().item() == pytest.approx((pulled * velocities).sum().item(), rel=1e-10, abs=1e-9)


NEARLY = np.array([[0.0, 1e-6, 0.0], [1.1, 0.0, 0.0], [-1.2, 0.0, 0.0], [2.3, 2e-6, 1e-6]])
LINEAR = np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [-1.06, 0.0, 0.0], [2.26, 0.0, 0.0]])


@pytest.mark.parametrize("beta", [0.95, 1.0])
@pytest.mark.parametrize("zeta", [8.0, 14.1])
def test_nearly_collinear_atoms_match_50_digits(make_dense: Dense, beta: float, zeta: float):
    config, species = AEVConfig(**CHO, beta=beta, zeta=zeta), [0, 1, 0, 2]
    molecule = Molecule(torch.tensor(species), torch.from_numpy(NEARLY))
    values, jacobian = aev_kernel.aevs(config, *alone(molecule)), compiled_jacobian(make_dense, config, molecule)
    assert_close(values, reference_values(config, species, NEARLY), VALUE_TOLERANCE)
    for atom in range(4):
        assert_close(jacobian[atom], reference_jacobian(config, species, NEARLY, atom), SLOPE_TOLERANCE)


@pytest.mark.parametrize("beta", [0.95, 1.0])
@pytest.mark.parametrize("zeta", [1.0, 8.0, 14.1, 1.5])
def test_collinear_atoms_are_as_in_torch_in_any_direction(make_dense: Dense, beta: float, zeta: float):
    # at beta = 1 the sine has a cusp there; rounding bends tilted atoms by 1e-16
    config, species = AEVConfig(**CHO, beta=beta, zeta=zeta), torch.tensor([0, 0, 1, 1])
    orthogonal = np.linalg.qr(np.random.default_rng(5).normal(size=(20, 3, 3)))[0]
    straight = Molecule(species, torch.from_numpy(LINEAR))
    value, jacobian = aev_kernel.aevs(config, *alone(straight)), compiled_jacobian(make_dense, config, straight)
    assert np.isfinite(jacobian).all()
    assert_close(value, aevs(config, *straight), VALUE_TOLERANCE)
    assert_close(jacobian, aev_jacobians(config, *straight), SLOPE_TOLERANCE)
    for turn in orthogonal:
        tilted = Molecule(species, torch.from_numpy(LINEAR @ turn))
        found = aev_kernel.aevs(config, *alone(tilted)), compiled_jacobian(make_dense, config, tilted)
        assert found[0].isfinite().all()
        assert np.isfinite(found[1]).all()
        assert_close(found[0], value, VALUE_TOLERANCE)
        assert_close(np.einsum("ndmx,yx->ndmy", found[1], turn), jacobian, 10 * SLOPE_TOLERANCE)


@pytest.mark.parametrize("limit", ["radial_cutoff", "angular_cutoff"])
@pytest.mark.parametrize("beyond", [-1e-9, -1e-15, 0.0, 1e-15, 1e-9])
def test_atoms_at_the_cutoff(make_dense: Dense, limit: str, beyond: float):
    config, reach = AEVConfig(**CHO), getattr(AEVConfig(**CHO), limit)
    distance = np.nextafter(reach, np.sign(beyond) * np.inf) if abs(beyond) == 1e-15 else reach + beyond
    bent = Molecule(
        torch.tensor([0, 1, 2]),
        torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.1, 0.0], [distance, 0.0, 0.0]], dtype=torch.float64),
    )
    assert_close(aev_kernel.aevs(config, *alone(bent)), aevs(config, *bent), VALUE_TOLERANCE)
    assert_close(compiled_jacobian(make_dense, config, bent), aev_jacobians(config, *bent), SLOPE_TOLERANCE)


@pytest.mark.parametrize("size", [0, 1])
def test_without_neighbours_there_is_nothing(size: int):
    config = CONFIGS["rule"]
    molecule = Molecule(torch.ones(size, dtype=torch.int64), torch.zeros(size, 3, dtype=torch.float64))
    arguments = config, *alone(molecule)
    assert torch.equal(aev_kernel.aevs(*arguments), torch.zeros(size, config.length, dtype=torch.float64))
    pulled = aev_kernel.pull(*arguments, torch.ones(2, size, config.length, dtype=torch.float64))
    assert torch.equal(pulled, torch.zeros(2, size, 3, dtype=torch.float64))
    assert aev_kernel.pair_jacobians(*arguments).shape == (0, 3, 16 + 3 * 64)


@pytest.mark.parametrize("name", ["rule", "ANI", "beta 1", "zeta 14.1"])
def test_float32_is_within_its_rounding(make_positions: Positions, name: str):
    config = CONFIGS[name]
    single = packed([m._replace(positions=m.positions.float()) for m in random_molecules(make_positions, config)])
    double = single.positions.double()
    gradients = random_like(2, len(double), config.length).float()
    values = aev_kernel.aevs(config, single.atoms, single.positions)
    pulled = aev_kernel.pull(config, single.atoms, single.positions, gradients)
    blocks = aev_kernel.pair_jacobians(config, single.atoms, single.positions)
    assert {values.dtype, pulled.dtype, blocks.dtype} == {torch.float32}
    assert_close(values, aev_kernel.aevs(config, single.atoms, double), SINGLE_TOLERANCE)
    assert_close(blocks, aev_kernel.pair_jacobians(config, single.atoms, double), SINGLE_SLOPE_TOLERANCE)
    expected = aev_kernel.pull(config, single.atoms, double, gradients.double())
    assert_close(pulled, expected, 10 * SINGLE_SLOPE_TOLERANCE)


@pytest.mark.parametrize("beta", [0.95, 1.0])
def test_float32_is_finite_for_collinear_atoms(beta: float):
    config, species = AEVConfig(**CHO, beta=beta), torch.tensor([0, 0, 1, 1])
    turned = LINEAR @ np.linalg.qr(np.random.default_rng(6).normal(size=(20, 3, 3)))[0]
    for positions in turned:
        molecule = Molecule(species, torch.from_numpy(positions).float())
        found = aev_kernel.aevs(config, *alone(molecule)), aev_kernel.pair_jacobians(config, *alone(molecule))
        assert all(part.isfinite().all() for part in found)
        assert found[1].abs().max() < 100, "1/Å"


def everything(config: AEVConfig, molecules: Sequence[Molecule]) -> tuple[Tensor, ...]:
    """The results of all four functions."""
    atoms, positions, _ = packed(molecules)
    gradients = random_like(2, len(positions), config.length).to(positions)
    velocities = random_like(2, len(positions), 3).to(positions)
    return (
        aev_kernel.aevs(config, atoms, positions),
        aev_kernel.pull(config, atoms, positions, gradients),
        push(config, atoms, positions, velocities),
        aev_kernel.pair_jacobians(config, atoms, positions),
    )


def test_threads_change_no_bit(make_positions: Positions):
    config = CONFIGS["two elements"]
    molecules = random_molecules(make_positions, config, sizes=[2 + k % 7 for k in range(41)])
    with using_threads(1):
        expected = everything(config, molecules)
    for threads in (2, 3, 8, 64):
        with using_threads(threads):
            assert all(map(torch.equal, everything(config, molecules), expected))


def test_a_structure_is_the_same_in_any_company(make_positions: Positions):
    config = CONFIGS["rule"]
    molecules = random_molecules(make_positions, config)
    atoms, positions, rows = packed(molecules)
    together = aev_kernel.aevs(config, atoms, positions)
    for molecule, own in zip(molecules, rows, strict=True):
        assert torch.equal(together[own], aev_kernel.aevs(config, *alone(molecule)))


def test_hundreds_of_atoms(make_positions: Positions):
    """torch's tables of all triples would not fit, so that each of some atoms is given its surroundings alone."""
    config, n = AEVConfig(**CHO, radial_cutoff=4.0, angular_cutoff=3.0), 300
    (cluster,) = random_molecules(make_positions, config, (n,), seed=1)
    atoms, positions = alone(cluster)
    velocities = random_like(1, n, 3)
    values, pushed = aev_kernel.aevs(config, atoms, positions), push(config, atoms, positions, velocities)[0]
    distances = torch.cdist(positions, positions)
    assert distances.max() > 3 * config.radial_cutoff
    for atom in range(0, n, 30):
        near = (distances[atom] <= config.radial_cutoff).nonzero()[:, 0]
        assert 10 < len(near) < n / 3
        centre = int((near == atom).nonzero())
        expected, slope = jvp(
            lambda x, s=cluster.species[near]: aevs(config, s, x), (positions[near],), (velocities[0, near],)
        )
        assert_close(values[atom], expected[centre], VALUE_TOLERANCE)
        assert_close(pushed[atom], slope[centre], 10 * SLOPE_TOLERANCE)
    gradients = random_like(1, n, config.length)
    pulled = aev_kernel.pull(config, atoms, positions, gradients)
    # pull is push's transpose, at this size too
    assert (pushed * gradients[0]).sum().item() == pytest.approx((pulled * velocities).sum().item(), rel=1e-10)


def small(make_positions: Positions) -> tuple[AEVConfig, Atoms, Tensor]:
    config = AEVConfig(elements=("C", "H"), n_radial=2, n_angular_radial=2, n_angular=3)
    atoms, positions, _ = packed(random_molecules(make_positions, config, sizes=(3, 2)), padding=1)
    return config, atoms, positions


def test_the_pull_is_differentiable_in_its_gradients(make_positions: Positions):
    config, atoms, positions = small(make_positions)
    gradients = random_like(2, len(positions), config.length).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: aev_kernel.pull(config, atoms, positions, g), (gradients,))
    assert torch.autograd.gradgradcheck(lambda g: aev_kernel.pull(config, atoms, positions, g), (gradients,))


def test_the_pull_under_torch_func(make_positions: Positions):
    config, atoms, positions = small(make_positions)
    gradients = random_like(2, len(positions), config.length)

    def pull(gradients: Tensor) -> Tensor:
        return aev_kernel.pull(config, atoms, positions, gradients)

    def squared(gradients: Tensor) -> Tensor:
        return (pull(gradients) ** 2).sum()

    def curved(gradients: Tensor) -> Tensor:
        return (grad(squared)(gradients) ** 2).sum()

    jacobian = jacrev(pull)(gradients).flatten(3).flatten(0, 2)
    assert_close(jacobian @ gradients.flatten(), pull(gradients).flatten(), VALUE_TOLERANCE)
    once = 2 * jacobian.T @ jacobian @ gradients.flatten()
    assert_close(grad(squared)(gradients).flatten(), once, SLOPE_TOLERANCE)
    assert_close(grad(curved)(gradients).flatten(), 4 * jacobian.T @ jacobian @ once, 100 * SLOPE_TOLERANCE)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_takes_more_gradients(make_positions: Positions, dim: int):
    config, atoms, positions = small(make_positions)
    gradients = random_like(4, 2, len(positions), config.length)

    def squared(gradients: Tensor) -> Tensor:
        return (aev_kernel.pull(config, atoms, positions, gradients) ** 2).sum()

    expected = torch.stack([aev_kernel.pull(config, atoms, positions, member) for member in gradients])
    found = vmap(lambda g: aev_kernel.pull(config, atoms, positions, g), in_dims=dim)(gradients.movedim(0, dim))
    assert torch.equal(found, expected)
    slopes = vmap(grad(squared), in_dims=dim)(gradients.movedim(0, dim))
    assert_close(slopes, torch.stack([grad(squared)(member) for member in gradients]), VALUE_TOLERANCE)


def test_derivatives_by_positions_and_vmap_over_them_are_refused(make_positions: Positions):
    config, atoms, positions = small(make_positions)
    gradients = random_like(1, len(positions), config.length)
    with pytest.raises(NotImplementedError, match="no derivative by positions; use"):
        grad(lambda x: aev_kernel.pull(config, atoms, x, gradients).sum())(positions)
    with pytest.raises(NotImplementedError, match="no derivative by positions; use"):
        aev_kernel.aevs(config, atoms, positions.clone().requires_grad_())
    with pytest.raises(NotImplementedError, match="batched over gradients alone"):
        vmap(lambda x: aev_kernel.pull(config, atoms, x, gradients))(torch.stack([positions, positions]))


def test_other_numbers_than_it_knows_are_refused(make_positions: Positions):
    """It would read past their end."""
    config, atoms, positions = small(make_positions)
    with pytest.raises(TypeError, match=r"float32 or float64, and alike, got \['torch\.float16'\]"):
        aev_kernel.aevs(config, atoms, positions.half())
    gradients = random_like(1, len(positions), config.length)
    with pytest.raises(TypeError, match=r"got \['torch\.float32', 'torch\.float64'\]"):
        aev_kernel.pull(config, atoms, positions, gradients.float())


@pytest.mark.parametrize("name", ["aevs", "pull_aevs", "push_aevs"])
def test_the_operations_say_what_they_give(make_positions: Positions, name: str):
    """As torch.compile and make_fx ask."""
    config, atoms, positions = small(make_positions)
    given = {
        "aevs": [],
        "pull_aevs": [random_like(2, len(positions), config.length)],
        "push_aevs": [random_like(2, len(positions), 3)],
    }
    arguments = (positions.nan_to_num(), *atoms, *given[name], *aev_kernel._grid(config))
    operation = getattr(torch.ops.pykinml, name).default
    torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))


def test_without_the_library_it_says_so(make_positions: Positions, monkeypatch: pytest.MonkeyPatch):
    config, atoms, positions = small(make_positions)
    monkeypatch.setattr(aev_kernel, "_library", lambda: None)
    assert not aev_kernel.available()
    with pytest.raises(RuntimeError, match="were not built; see `available`"):
        aev_kernel.aevs(config, atoms, positions)


CAPABILITIES = {"DEFAULT": "_aev_kernel.", "AVX2": "_aev_kernel_v3.", "AVX512": "_aev_kernel_v4."}
"""What torch says of a processor, and how the file of the build for it begins."""


@pytest.fixture
def as_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Loads the build for a processor, and says which file that was."""

    open_library = ctypes.CDLL

    def load(capability: str) -> str:
        loaded: list[str] = []

        def remembered(path: str) -> ctypes.CDLL:
            loaded.append(path)
            return open_library(path)

        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
            patch.setattr(aev_kernel.ctypes, "CDLL", remembered)
            aev_kernel._library.cache_clear()
            assert aev_kernel.available()
        return Path(loaded[0]).name

    yield load
    aev_kernel._library.cache_clear()


def test_every_build_gives_the_same(make_positions: Positions, as_on: Callable[[str], str]):
    own = torch.backends.cpu.get_cpu_capability()
    capabilities = list(CAPABILITIES)[: list(CAPABILITIES).index(own) + 1] if own in CAPABILITIES else ["DEFAULT"]
    folder = Path(aev_kernel.__file__).parent
    capabilities = [name for name in capabilities if any(folder.glob(f"{CAPABILITIES[name]}*"))]
    for name in ("rule", "ANI", "zeta 14.1"):
        config = CONFIGS[name]
        molecules = random_molecules(make_positions, config)
        for dtype, tolerance in ((torch.float64, VALUE_TOLERANCE), (torch.float32, SINGLE_TOLERANCE)):
            cast = [molecule._replace(positions=molecule.positions.to(dtype)) for molecule in molecules]
            found = []
            for capability in capabilities:
                assert as_on(capability).startswith(CAPABILITIES[capability])
                found.append(everything(config, cast))
            for values, *slopes in found[1:]:
                assert_close(values, found[0][0], tolerance)
                for slope, expected in zip(slopes, found[0][1:], strict=True):
                    assert_close(slope, expected, 100 * tolerance)
