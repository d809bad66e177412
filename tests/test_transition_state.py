"""The transition-state example: trained once, then every number that it prints is found again another way."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from ase.io import read
from ase.units import invcm, kcal, mol
from ase.vibrations import Vibrations as DisplacedVibrations

from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.vibrations import vibrations

pytest.importorskip("sella", reason="the example needs sella: pip install -e '.[kinetics]'")

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "08_transition_state.py"


class Run(NamedTuple):
    output: str
    model: Path


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transition_state", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The example, with 15 epochs."""
    folder = tmp_path_factory.mktemp("transition_state")
    command = [sys.executable, str(SCRIPT), "15", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Run(done.stdout, folder / "model.safetensors")


def rows(output: str) -> list[tuple[str, float, float, float]]:
    """Label, mean, spread and reference of each row of the table."""
    found = re.findall(r"^(\S.*?) +(-?\d+\.\d) ± +(\d+\.\d\d) +(-?\d+\.\d)$", output, re.MULTILINE)
    return [(label, *map(float, numbers)) for label, *numbers in found]


def test_the_guess_is_no_transition_state(example: ModuleType, run: Run):
    guess = example.halfway()
    known = example.KNOWN[example.SADDLE]
    assert np.abs(guess.get_all_distances() - known.get_all_distances()).max() > 0.1
    guess.calc = PyKinMLCalculator(run.model)
    assert np.abs(guess.get_forces()).max() > 1


def test_a_transition_state_between_both_minima(run: Run):
    assert "saddle point: 1 imaginary modes" in run.output
    found = re.findall(r"(\w+) imaginary modes; (\w+), distances within (\d\.\d+) Å", run.output)
    assert sorted(name for _, name, _ in found) == ["h2co_min", "hcoh_trans_min"]
    assert all(number == "0" and float(apart) < 0.05 for number, _, apart in found)


def test_exact_hessians_save_forces(run: Run):
    calls = re.findall(r"^Sella with (.+): (\d+) forces, (\d+) Hessians; ts_h2co_hcoh, ", run.output, re.MULTILINE)
    (alone, exact) = calls
    assert (alone[0], exact[0]) == ("forces alone", "exact Hessians")
    assert int(alone[2]) == 0 < int(exact[2]) < int(exact[1]) < int(alone[1])


def test_the_search_ends_where_the_model_knows_the_molecules(run: Run):
    numbers = [float(number) for number in re.findall(r"extrapolation (\d+\.\d+);", run.output)]
    assert len(numbers) == 2 and max(numbers) <= 1


def test_barrier_is_that_of_the_method_trained_to(run: Run):
    """Within chemical accuracy; the reference is found again from the stored points."""
    known = {each.info["name"]: each for each in read(EXAMPLES / "data" / "stationary_points.extxyz", ":")}
    ends = [known["ts_h2co_hcoh"], known["h2co_min"]]
    electronic = [each.get_potential_energy() for each in ends]
    quanta = [sum(number for number in each.info["wavenumbers"] if number > 0) * invcm / 2 for each in ends]
    expected = [electronic[0] - electronic[1], electronic[0] + quanta[0] - electronic[1] - quanta[1]]
    barriers = [row for row in rows(run.output) if row[0].startswith("barrier")]
    np.testing.assert_allclose([row[3] for row in barriers], np.array(expected) * mol / kcal, rtol=0, atol=0.051)
    np.testing.assert_allclose([row[1] for row in barriers], [row[3] for row in barriers], rtol=0, atol=1.5)
    assert all(0 < row[2] < 1.5 for row in barriers)


def test_wavenumbers_are_those_of_finite_differences(example: ModuleType, run: Run, tmp_path: Path):
    """ASE's, of forces of the saddle point that is found again; the mean's differ little from the members' mean."""
    atoms = example.saddle_point(run.model, exact=True)
    displaced = DisplacedVibrations(atoms, name=str(tmp_path / "displaced"), delta=0.002)
    displaced.run()
    whole = displaced.get_frequencies()
    found = vibrations(run.model, atoms)
    assert (whole.imag > 100).sum() == found.n_imaginary == 1
    np.testing.assert_allclose(whole[-5:].real, found.wavenumbers[1:], rtol=0, atol=3)
    printed = [row[1] for row in rows(run.output) if row[0].startswith("ts_h2co_hcoh")]
    np.testing.assert_allclose(printed, found.member_wavenumbers.mean(axis=0), rtol=0, atol=1)
    assert -2400 < printed[0] < -1700
