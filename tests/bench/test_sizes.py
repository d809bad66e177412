"""What `bench.sizes` makes of its measurements."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.recorder import Recorder
from bench.sizes import SHARES, exponent, uniform_images, uniform_seconds

ROOT = Path(__file__).parents[2]


def test_seconds_between_measured_sizes_are_interpolated_and_below_them_continued():
    measured = {5: 1.0, 10: 2.0, 20: 6.0}
    assert uniform_seconds(np.array([5, 5, 20]), measured) == pytest.approx(8 / 3)
    assert uniform_seconds(np.array([15]), measured) == pytest.approx(4)
    assert uniform_seconds(np.array([2, 10]), measured) == pytest.approx((0.4 + 2) / 2)


def test_a_formula_that_lacks_elements_has_a_few_molecules_with_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bench.sizes.TRAINED", 20)
    generator = np.random.default_rng(0)
    formulas = Counter(str(atoms.symbols) for atoms in uniform_images(generator, 5, SHARES["organic"]))
    assert formulas == {"C2H3": 60, "CHNOF": 8}
    assert len({str(atoms.symbols) for atoms in uniform_images(generator, 20, SHARES["organic"])}) == 1


def test_the_exponent_is_that_of_the_larger_structures():
    rows = [{"atoms": 10, "seconds": 7.0}, *({"atoms": n, "seconds": 3e-4 * n**1.5} for n in (100, 200, 500))]
    assert exponent(rows, "seconds") == pytest.approx(1.5)


def test_the_recorder_leaves_out_the_first_epochs_and_ends_the_run():
    recorder = Recorder(warm=2, epochs=3)
    for seconds in (9.0, 8.0, 1.0, 3.0):
        recorder.epoch({"seconds": seconds}, 100)
    with pytest.raises(KeyboardInterrupt):
        recorder.epoch({"seconds": 2.0}, 100)
    assert recorder.first == 9 and recorder.seconds == [1, 3, 2] and recorder.median == 2 and recorder.spread == 2


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "bench.sizes", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    for option in ("--epochs", "--repeats", "--threads", "--device", "--json"):
        assert option in done.stdout
