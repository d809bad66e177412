from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def largest(self) -> float:
        """The number that the last line ends with."""
        return float(self.out.splitlines()[-1].split()[-1])


Replay = Callable[..., Ended]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return import_module("bench.parity")


@pytest.fixture
def replay(parity: ModuleType, shared: Path) -> Replay:
    """Runs the benchmark's `main` on a reference run as the command line does."""
    app = typer.Typer()
    app.command()(parity.main)

    def run(name: str, *options: str) -> Ended:
        command = [str(shared / "parity" / f"{name}.json"), "--data", str(shared / "data"), *options]
        done = CliRunner().invoke(app, command)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Ended(done.exit_code, done.stdout, done.stderr)

    return run


def epochs_of(shared: Path, name: str) -> int:
    return len(json.loads((shared / "parity" / f"{name}.json").read_text())["epochs"])


def test_training_to_energies_follows_pykinml(replay: Replay, shared: Path) -> None:
    ended = replay("single_fid_energy")
    assert ended.code == 0 and ended.largest < 1e-6
    assert len(ended.out.splitlines()) == epochs_of(shared, "single_fid_energy") + 1


@pytest.mark.parametrize("path", ["jacobian", "positions"])
def test_training_to_forces_follows_pykinml(replay: Replay, shared: Path, path: str) -> None:
    ended = replay("small_force_fw", "--force-path", path)
    assert ended.code == 0 and ended.largest < 1e-6
    lines = ended.out.splitlines()
    assert len(lines) == epochs_of(shared, "small_force_fw") + 1
    assert all(f"small_force_fw, {path}, epoch" in line for line in lines[:-1])


@pytest.mark.parametrize("path", ["jacobian", "positions"])
def test_training_with_learned_weights_follows_pykinml(replay: Replay, shared: Path, path: str) -> None:
    ended = replay("small_force_ofw", "--force-path", path)
    assert ended.code == 0 and ended.largest < 1e-6
    assert len(ended.out.splitlines()) == epochs_of(shared, "small_force_ofw") + 1


def test_delta_learning_follows_pykinml(replay: Replay, shared: Path) -> None:
    ended = replay("small_delta")
    assert ended.code == 0 and ended.largest < 1e-6
    assert len(ended.out.splitlines()) == epochs_of(shared, "small_delta") + 1


def test_both_paths_are_the_default_and_a_difference_above_the_tolerance_is_code_1(
    replay: Replay, shared: Path
) -> None:
    ended = replay("small_force_fw", "--tolerance", "1e-16")
    assert ended.code == 1 and 1e-16 < ended.largest < 1e-6
    assert len(ended.out.splitlines()) == 2 * epochs_of(shared, "small_force_fw") + 1


def test_right_jacobians_do_not_follow_pykinml(replay: Replay) -> None:
    """PyKinML 1.1.2 multiplies dE/dAEV with the Jacobians of other atoms where sizes are mixed; see bench.parity."""
    ended = replay("small_force_fw", "--right-jacobians", "--force-path", "jacobian")
    assert ended.code == 1 and ended.largest > 1e-4


def test_a_missing_file_is_told(replay: Replay) -> None:
    ended = replay("no_such_run")
    assert ended.code == 2 and "no_such_run.json" in ended.err


def test_an_unknown_force_path_is_no_success(replay: Replay) -> None:
    ended = replay("small_force_fw", "--force-path", "jacobain")
    assert ended.code == 2 and "jacobian, positions or both, got jacobain" in ended.err


def test_no_number_is_no_success(replay: Replay, parity: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(reference: parity.Reference, *_: object) -> object:  # type: ignore[name-defined]
        return ({**epoch, "test L1 loss": float("nan")} for epoch in reference.epochs)

    monkeypatch.setattr(parity, "replay", lost)
    assert replay("single_fid_energy").code == 1


def test_the_largest_difference_is_relative(parity: ModuleType) -> None:
    reference = {"train L1 loss": 2.0, "test Linf loss": 10.0, "lr": 1.0}
    found = {"train L1 loss": 2.2, "test Linf loss": 10.5, "lr": 7.0}
    assert parity.largest_difference(reference, found) == (pytest.approx(0.1), "train L1 loss")


def test_the_module_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "bench.parity", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "--tolerance" in done.stdout and "--right-jacobians" in done.stdout
