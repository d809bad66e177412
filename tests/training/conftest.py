"""Small networks on C2H2 and CH4, of one level and of two, batches of made-up structures, and databases of potentials
that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mishap import Striking, befall, spare
from runs import LEVELS, small_run

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.formats.database import write_database
from pykinml_func.potential.energy import init_params
from pykinml_func.training.optimizers import adam
from pykinml_func.training.step import Objective, init_state
from pykinml_func.types import Batch, Params, Structures, TrainState

AEV = AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2)
MODEL = ModelConfig(aev=AEV, neurons=(5, 3, 1), activations=("gaussian", "tanh", "identity"))
CHAIN = MODEL.model_copy(update={"fidelities": (0, 3)})
FORMULAS = ("C2H2", "CH4", "C2H2", "C2H4", "CH4")

MakeBatch = Callable[..., Batch]


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return MODEL


@pytest.fixture(scope="session")
def chain_config() -> ModelConfig:
    """Levels 0 and 3."""
    return CHAIN


def drawn_params(config: ModelConfig) -> Params:
    drawn = init_params(config, torch.Generator().manual_seed(1))
    self_energies = [[-1036.0 + level, -13.5 + level] for level in range(config.n_levels)]
    return Params(drawn.networks, torch.tensor(self_energies, dtype=torch.float64))


@pytest.fixture
def params() -> Params:
    return drawn_params(MODEL)


@pytest.fixture
def chain_params() -> Params:
    return drawn_params(CHAIN)


@pytest.fixture
def state(params: Params) -> TrainState:
    return init_state(params, adam(), Objective(forces=True), 1e-3)


@pytest.fixture(scope="session")
def labelled(make_structures: Callable[..., Structures]) -> Structures:
    """Mixed sizes with random labels, energies of the size of those less self energies."""
    structures = make_structures(FORMULAS, seed=4)
    return structures._replace(energies=structures.energies + 1000)


@pytest.fixture(scope="session")
def chain_labelled(make_structures: Callable[..., Structures]) -> Structures:
    """`labelled` with levels 0 and 3. Structure 1 lacks energy and forces of level 0, structure 2 those of level 3, and
    structure 3 the forces of level 3.
    """
    structures = make_structures(FORMULAS, seed=4, levels=(0, 3))
    energies, forces = structures.energies + 1000, structures.forces.copy()
    first = structures.offsets
    energies[1, 0] = energies[2, 1] = np.nan
    forces[first[1] : first[2], 0] = forces[first[2] : first[4], 1] = np.nan
    return structures._replace(energies=energies, forces=forces)


@pytest.fixture(scope="session")
def make_batch(labelled: Structures, make_source: Callable[..., Source]) -> MakeBatch:
    """A batch of `structures` (default: `labelled`): index, contents (positions, aevs or jacobians), the size it is
    padded to, precision; the share of one of several ranks.
    """

    def make(
        index: Sequence[int] = range(len(FORMULAS)),
        contents: str = "jacobians",
        batch_size: int | None = None,
        dtype: torch.dtype = torch.float64,
        structures: Structures = labelled,
        share: tuple[int, int] = (0, 1),
    ) -> Batch:
        source = make_source(structures, AEV, contents)
        members = np.resize(np.arange(len(FORMULAS)), max(len(FORMULAS), batch_size or 0))  # no batch is larger
        packer = Packer(source, members, batch_size or len(index), dtype, torch.device("cpu"), share)
        (batch,) = packer.batches(np.asarray(index))
        return batch

    return make


@pytest.fixture
def struck() -> Iterator[Striking]:
    """Lets something befall this process at its batch of that number, until the test is over."""
    yield befall
    spare()


BASES = {
    "C2H2": [[0, 0, 0.6], [0, 0, -0.6], [0, 0, 1.66], [0, 0, -1.66]],
    "CH4": [[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [0.63, -0.63, -0.63], [-0.63, 0.63, -0.63]],
}
NUMBERS = {"C2H2": [6, 6, 1, 1], "CH4": [6, 1, 1, 1, 1]}
ATOMS = {6: -1036.0, 1: -13.5}
"""eV"""


def pair_potential(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum over pairs of exp(-2x) - 2 exp(-x), x = (r - 1.2 Å) / 1 Å: Morse's. positions: (n,3). eV, (n,3) eV/Å."""
    energy, forces = 0.0, np.zeros_like(positions)
    for i in range(len(positions)):
        for j in range(i):
            vector = positions[i] - positions[j]
            r = float(np.linalg.norm(vector))
            x = r - 1.2
            energy += np.exp(-2 * x) - 2 * np.exp(-x)
            pull = (2 * np.exp(-2 * x) - 2 * np.exp(-x)) * vector / r
            forces[i] += pull
            forces[j] -= pull
    return energy, forces


SCALES = {0: 0.7, 1: 1.0, 2: 1.1}
"""A level's potential, self energies and Morse's alike, over that of level 1."""


def pair_structures(formula: str, count: int, seed: int, levels: Sequence[int] = (1,)) -> Structures:
    generator = np.random.default_rng(seed)
    base = np.array(BASES[formula], dtype=float)
    geometries = [base + generator.normal(0, 0.1, base.shape) for _ in range(count)]
    labels = [pair_potential(geometry) for geometry in geometries]
    numbers = NUMBERS[formula]
    atoms, scales = sum(ATOMS[number] for number in numbers), np.array([SCALES[level] for level in levels])
    return Structures(
        np.tile(numbers, count),
        np.concatenate(geometries),
        np.arange(count + 1) * len(numbers),
        np.array(levels),
        np.array([scales * (atoms + energy) for energy, _ in labels]),
        np.concatenate([forces for _, forces in labels])[:, None] * scales[:, None],
        np.array([f"{formula}/{m + 1}" for m in range(count)]),
        np.array([""] * count),
        np.full(count, 300.0),
    )


COUNTS = {"C2H2": 14, "CH4": 10}


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with C2H2.db and CH4.db, 14 and 10 structures of the pair potential."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (formula, count) in enumerate(COUNTS.items()):
        write_database(folder / f"{formula}.db", pair_structures(formula, count, seed), {1: "Morse pairs"})
    return folder


@pytest.fixture(scope="session")
def level_databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`databases` with levels 0, 1 and 2. Of each formula the structures 3, 6 and 9 lack level 2, number 2 lacks level
    0, and number 5 the forces of level 1.
    """
    folder = tmp_path_factory.mktemp("levels")
    for seed, (formula, count) in enumerate(COUNTS.items()):
        structures = pair_structures(formula, count, seed, levels=(0, 1, 2))
        structures.energies[[2, 5, 8], 2] = structures.energies[1, 0] = np.nan
        structures.forces[structures.offsets[4] : structures.offsets[5], 1] = np.nan
        write_database(folder / f"{formula}.db", structures, dict.fromkeys(range(3), "Morse pairs, scaled"))
    return folder


@pytest.fixture
def settings(databases: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of a second, to which a test adds its own."""
    return small_run(databases, tmp_path)


@pytest.fixture
def level_settings(settings: dict[str, Any], level_databases: Path) -> dict[str, Any]:
    """Settings of a run of a second on levels 1 and 2."""
    return {**settings, "input": (str(level_databases / "*.db"),), **LEVELS}
