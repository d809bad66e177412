"""Shared by the tests: where the real data lie, and seeded made-up structures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from ase.data import atomic_numbers
from ase.symbols import string2symbols
from hypothesis import settings

from pykinml_func.config import AEVConfig
from pykinml_func.data.batching import Source
from pykinml_func.data.elements import species_of
from pykinml_func.data.featurize import fill_aevs, fill_jacobians, jacobian_shape
from pykinml_func.data.labels import has_forces
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.aev import neighbour_columns
from pykinml_func.types import Structures

settings.register_profile("pykinml_func", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("pykinml_func")

CLOSEST = 0.8
"""Å; no two made-up atoms are nearer: shorter than a C-H bond, so that the potentials' stiff part is met too."""


def pytest_configure(config: pytest.Config) -> None:
    """torch's own forward-mode derivatives still call torch.jit.script, which torch deprecates."""
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real databases and reference runs (data/ and parity/)."""
    root = Path(os.environ.get("PYKINML_SHARED", Path(__file__).parents[2] / "shared")).resolve()
    if not (root / "data").is_dir():
        pytest.skip(
            f"needs PyKinML's example data: none in {root}; set PYKINML_SHARED to a folder with data/ and parity/"
        )
    return root


def random_positions(n: int, seed: int) -> np.ndarray:
    """(n,3) Å, atoms in a box that the cutoffs partly reach across."""
    generator = np.random.default_rng(seed)
    side = 2.2 * n ** (1 / 3)
    placed: list[np.ndarray] = []
    while len(placed) < n:
        atom = generator.uniform(-side / 2, side / 2, 3)
        if all(np.linalg.norm(atom - other) > CLOSEST for other in placed):
            placed.append(atom)
    return np.array(placed)


def random_structures(formulas: Sequence[str], seed: int = 0, levels: Sequence[int] = (1,)) -> Structures:
    """One made-up structure a formula, in that order, with random labels; ids count from 1 within each formula."""
    generator = np.random.default_rng(seed)
    numbers = [[atomic_numbers[symbol] for symbol in string2symbols(formula)] for formula in formulas]
    sizes = [len(atoms) for atoms in numbers]
    m, a, n_levels = len(sizes), sum(sizes), len(levels)
    return Structures(
        np.concatenate(numbers),
        np.concatenate([random_positions(size, 1000 * seed + number) for number, size in enumerate(sizes)]),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.array(levels),
        generator.normal(-1000, 5, (m, n_levels)),
        generator.normal(0, 1, (a, n_levels, 3)),
        np.array([f"{formula}/{formulas[: k + 1].count(formula)}" for k, formula in enumerate(formulas)]),
        np.array([f"name{k % 3}" for k in range(m)]),
        np.array([300.0 + 100 * (k % 2) for k in range(m)]),
    )


def source_of(structures: Structures, config: AEVConfig, contents: str) -> Source:
    """What batches are cut from, labels as they are; contents: positions, aevs or jacobians."""
    aevs = np.empty((len(structures.numbers), config.length))
    jacobians = np.empty(jacobian_shape(config, structures.sizes))
    if contents != "positions":
        fill_aevs(config, structures, "native", aevs, lambda _: None)
    if contents == "jacobians":
        fill_jacobians(config, structures, "native", jacobians, lambda _: None)
    return Source(
        species_of(config.elements, structures),
        structures.positions,
        structures.offsets,
        len(config.elements),
        structures.energies,
        structures.forces,
        has_forces(structures),
        None if contents == "positions" else aevs,
        jacobians if contents == "jacobians" else None,
    )


def dense_of(config: AEVConfig, species: Sequence[int] | np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """All of one structure's dAEV/dxyz (n,D,n,3) from what is stored of it (n(n-1),3,B): an AEV changes with its own
    atom as against all others together, since it does not see where the whole structure is.
    """
    n, columns = len(species), neighbour_columns(config)
    dense = np.zeros((n, config.length, n, 3))
    for block, (centre, neighbour) in zip(blocks, permutations(range(n), 2), strict=True):
        dense[centre, columns[species[neighbour]], neighbour] = block.T
    own = np.arange(n)
    dense[own, :, own] = -dense.sum(axis=2)
    return dense


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def either_aevs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the compiled AEVs, and as where there are none. Whether there are."""
    if not request.param:
        monkeypatch.setattr(aev_kernel, "available", lambda: False)
    elif not aev_kernel.available():
        pytest.skip("the compiled AEVs were not built")
    return bool(request.param)


@pytest.fixture(scope="session")
def make_dense() -> Callable[..., np.ndarray]:
    return dense_of


@pytest.fixture(scope="session")
def make_positions() -> Callable[[int, int], np.ndarray]:
    return random_positions


@pytest.fixture(scope="session")
def make_structures() -> Callable[..., Structures]:
    return random_structures


@pytest.fixture(scope="session")
def make_source() -> Callable[[Structures, AEVConfig, str], Source]:
    return source_of
