from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from pykinml_func.data.formats.database import formula_symbols, read_databases
from pykinml_func.data.splits import read_split_files
from pykinml_func.inference.predictor import Predictor
from pykinml_func.training.model_file import load_model
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


def children_seconds() -> float:
    """What the commands that ended used of one processor, however busy the machine is beside them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    folder = tmp_path_factory.mktemp("quickstart")
    started = children_seconds()
    output = run(folder, Path(sys.executable).parent / "pykinml", "train", EXAMPLES / "quickstart.toml")
    return Quickstart(folder, output, children_seconds() - started)


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


def test_training_from_python(quickstart: Quickstart, tmp_path: Path) -> None:
    output = run(quickstart.folder, sys.executable, EXAMPLES / "01_train.py", 2, tmp_path / "run")
    assert re.fullmatch(r"test MAE: \d+\.\d\d kcal/mol", output.splitlines()[-1])
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_python_and_toml_tell_the_same_run(quickstart: Quickstart, tmp_path: Path) -> None:
    run(quickstart.folder, sys.executable, EXAMPLES / "01_train.py", 1, tmp_path / "run")
    different = {"epochs", "output", "prepared"}

    def told(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if line.split(" ")[0] not in different]

    assert told(tmp_path / "run" / "config.toml") == told(quickstart.folder / "runs" / "quickstart" / "config.toml")


def mean_errors(output: str) -> dict[str, float]:
    """kcal/mol by what stands before them, in the lines 'energies: test MAE 2.34 kcal/mol'."""
    found = re.findall(r"^(.*): (?:test )?MAE:? (\d+\.\d\d) kcal/mol$", output, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_continuing_from_python(quickstart: Quickstart) -> None:
    """Two epochs on energies and forces leave the energies better than two on energies alone did."""
    output = run(quickstart.folder, sys.executable, EXAMPLES / "03_continue.py", 2, "continued")
    errors = mean_errors(output)
    assert set(errors) == {"energies", "then forces"}
    assert 0 < errors["then forces"] < errors["energies"] < 50
    first, second = (quickstart.folder / "continued" / part for part in ("energies", "forces"))
    starts = [load_model(folder / "model.safetensors")[1].self_energies for folder in (first, second)]
    assert torch.equal(*starts)
    assert 'start_from = "' in (second / "config.toml").read_text()


def test_delta_learning_from_python(quickstart: Quickstart) -> None:
    """What it prints is the error of the high level: found again from the model file and the databases."""
    output = run(quickstart.folder, sys.executable, EXAMPLES / "04_delta.py", 2, "delta")
    methane = read_databases([EXAMPLES / "data" / "CH4.db"])
    both = np.flatnonzero(np.isfinite(methane.energies).all(axis=1))
    images = [
        Atoms(methane.numbers[a:b], methane.positions[a:b])
        for a, b in zip(methane.offsets[both], methane.offsets[both + 1], strict=True)
    ]
    differences = Predictor.load(quickstart.folder / "delta" / "model.safetensors").predict(images)
    high = np.array([found.energy for found in differences]) + methane.energies[both, 0]
    error = KCAL * np.abs(high - methane.energies[both, 1]).mean()
    assert mean_errors(output)[f"CH4, {len(both)} structures"] == pytest.approx(error, abs=0.006)
    assert 0 < error < 50
    tested = re.search(r"^test MAE: (\d+\.\d\d) kcal/mol$", output, re.MULTILINE)
    assert tested and 0 < float(tested.group(1)) < 50


def test_multi_fidelity_from_python(quickstart: Quickstart) -> None:
    """Both levels are learned, and differ by what the methods differ."""
    output = run(quickstart.folder, sys.executable, EXAMPLES / "05_multifidelity.py", 1, "levels")
    high, low = re.search(r"MAE, kcal/mol: level 1 (\d+\.\d\d), level 0 (\d+\.\d\d)", output).groups()  # type: ignore[union-attr]
    assert 0 < float(low) < 50 and 0 < float(high) < 50
    lines = re.findall(r"^H2CO, level (\d): (-\d+\.\d+) eV, largest force (\d+\.\d+) eV/Å$", output, re.MULTILINE)
    assert [level for level, _, _ in lines] == ["0", "1"]
    (found,) = Predictor.load(quickstart.folder / "levels" / "model.safetensors").predict([molecule("H2CO")])
    assert [float(energy) for _, energy, _ in lines] == pytest.approx(found.level_energies.tolist(), abs=1e-4)
    forces = np.linalg.norm(found.level_forces, axis=2).max(axis=1)
    assert [float(force) for _, _, force in lines] == pytest.approx(forces.tolist(), abs=1e-3)
    np.testing.assert_allclose(found.level_energies, [-212.0, -3113.7], rtol=0, atol=3)  # eV, of all electrons or few


def test_uncertainty_from_python(quickstart: Quickstart) -> None:
    """A stretched molecule is less certain than one at rest, and one that was never seen is known to be uncertain."""
    output = run(quickstart.folder, sys.executable, EXAMPLES / "07_uncertainty.py", 8, "uncertain")
    number = r"(-?\d+\.\d+)"
    lines = re.findall(rf"^(H2CO.*): {number} ± {number} eV, extrapolation {number}$", output, re.MULTILINE)
    (_, energy, std, near), (_, _, larger, far) = lines
    assert float(energy) == pytest.approx(-3114.7, abs=0.5) and float(std) < float(larger)
    assert float(near) < 1 < float(far)
    expected, actual = map(float, re.findall(rf"{number} kcal/mol is expected, and {number} is what", output)[0])
    assert 0.2 < actual / expected < 5
    assert len(set(re.findall(r"label next: structures (.*)$", output, re.MULTILINE)[0].split(", "))) == 5


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("0*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    searches_and_compares = path.name == "08_transition_state.py"
    assert len(path.read_text().splitlines()) < (150 if searches_and_compares else 60)


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
