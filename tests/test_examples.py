from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from ase import Atoms

from pykinml_func.data.database import formula_symbols, read_databases
from pykinml_func.data.splits import read_split_files
from pykinml_func.inference.predictor import Predictor
from pykinml_func.types import Structures

EXAMPLES = Path(__file__).parents[1] / "examples"
DATABASES = sorted((EXAMPLES / "data").glob("*.db"))
KCAL = 23.060548


class Quickstart(NamedTuple):
    folder: Path
    output: str
    seconds: float


def run(folder: Path, *command: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    folder = tmp_path_factory.mktemp("quickstart")
    started = time.perf_counter()
    output = run(folder, Path(sys.executable).parent / "pykinml", "train", EXAMPLES / "quickstart.toml")
    return Quickstart(folder, output, time.perf_counter() - started)


@pytest.fixture(scope="module")
def structures() -> Structures:
    return read_databases(DATABASES)


def test_quickstart_trains_in_two_minutes(quickstart: Quickstart) -> None:
    assert quickstart.seconds < 120
    lines = quickstart.output.splitlines()
    assert [line for line in lines if re.match(r"test +60( +\d+\.\d+){6}$", line.strip())]
    model = quickstart.folder / lines[-1].removeprefix("MODEL: ")
    assert model.is_file() and model.name == "model.safetensors"
    assert (model.parent / "parity.png").stat().st_size > 10_000


def test_quickstart_reaches_chemical_accuracy(quickstart: Quickstart, structures: Structures) -> None:
    """1 kcal/mol on structures that it neither learned from nor chose its epoch by; evaluated from its files."""
    directory = quickstart.folder / "runs" / "quickstart"
    marks = read_split_files([directory / "split.txt"])
    place = {name: m for m, name in enumerate(structures.ids)}
    tests = structures.take([place[name] for name, mark in marks.items() if mark == -1])
    atoms = zip(tests.offsets[:-1], tests.offsets[1:], strict=True)
    images = [Atoms(tests.numbers[a:b], tests.positions[a:b]) for a, b in atoms]
    predictions = Predictor.load(directory / "model.safetensors").predict(images)
    errors = KCAL * np.abs(np.array([found.energy for found in predictions]) - tests.energies[:, 1])
    assert len(errors) == 60
    assert errors.mean() <= 1.0
    row = next(line.split() for line in quickstart.output.splitlines() if line.strip().startswith("test "))
    assert float(row[2]) == pytest.approx(errors.mean(), abs=1e-3)


def test_prediction_from_python(quickstart: Quickstart) -> None:
    output = run(quickstart.folder, sys.executable, EXAMPLES / "02_predict.py")
    core, calculator, relaxed = output.splitlines()
    energies = [float(line.split()[1]) for line in (core, calculator, relaxed)]
    assert energies[0] == pytest.approx(energies[1], abs=2e-6)
    assert energies[2] < energies[0]
    length = float(re.search(r"C-O (\d\.\d+) Å", relaxed).group(1))  # type: ignore[union-attr]
    assert length == pytest.approx(1.21, abs=0.03)  # formaldehyde's, from spectra: 1.205 Å


def test_training_from_python(tmp_path: Path) -> None:
    output = run(tmp_path, sys.executable, EXAMPLES / "01_train.py", 2, tmp_path / "run")
    assert re.fullmatch(r"test MAE: \d+\.\d\d kcal/mol", output.splitlines()[-1])
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_python_and_toml_tell_the_same_run(quickstart: Quickstart, tmp_path: Path) -> None:
    run(tmp_path, sys.executable, EXAMPLES / "01_train.py", 1, tmp_path / "run")
    different = {"epochs", "output", "prepared"}

    def told(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if line.split(" ")[0] not in different]

    assert told(tmp_path / "run" / "config.toml") == told(quickstart.folder / "runs" / "quickstart" / "config.toml")


@pytest.mark.parametrize("name", ["01_train.py", "02_predict.py"])
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


def test_example_data_are_small() -> None:
    assert sum(path.stat().st_size for path in (EXAMPLES / "data").iterdir()) < 3_000_000


def test_example_data_hold_two_levels_of_three_elements(structures: Structures) -> None:
    low, high = np.isfinite(structures.energies).T
    assert structures.levels.tolist() == [0, 1]
    assert (low & high).sum() >= 590
    assert (low & ~high).sum() >= 1400
    assert low.all()
    assert set(structures.numbers.tolist()) == {1, 6, 8}


def test_example_data_hold_a_radical() -> None:
    """An odd number of electrons: H has one, C six, O eight."""
    electrons = {"H": 1, "C": 6, "O": 8}
    odd = [path.stem for path in DATABASES if sum(electrons[symbol] for symbol in formula_symbols(path)) % 2]
    assert odd


def test_example_data_tell_names_and_temperatures(structures: Structures) -> None:
    assert all(structures.names)
    assert len(set(structures.names.tolist())) >= 10
    assert set(structures.temperatures.tolist()) <= {300.0, 600.0, 1000.0, 1500.0}


def test_example_forces_come_with_every_energy_and_sum_to_zero(structures: Structures) -> None:
    forces = np.nan_to_num(structures.forces)
    lacking = np.add.reduceat(np.isnan(structures.forces).any(axis=2), structures.offsets[:-1], axis=0)
    np.testing.assert_array_equal(lacking > 0, np.isnan(structures.energies))
    net = np.add.reduceat(forces, structures.offsets[:-1], axis=0)
    assert np.abs(net).max() < 1e-6
    assert np.abs(forces).max() > 1


def test_example_forces_do_not_turn_the_molecules(structures: Structures) -> None:
    owner = np.repeat(np.arange(structures.n_structures), structures.sizes)
    centres = np.add.reduceat(structures.positions, structures.offsets[:-1]) / structures.sizes[:, None]
    arms = (structures.positions - centres[owner])[:, None]
    torques = np.add.reduceat(np.cross(arms, np.nan_to_num(structures.forces)), structures.offsets[:-1])
    assert np.abs(torques[:, 0]).max() < 1e-6
    assert np.abs(torques[:, 1]).max() < 0.02  # the integration grid of the high level feels the orientation
