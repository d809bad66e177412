"""What the tests of whole runs share: a run, what a reporter heard of it, and comparisons."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from pykinml_func.config.build import build_config
from pykinml_func.data.prepared import PreparedSet
from pykinml_func.training.checkpoint import newest_checkpoint
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import RunResult, Setup

Settings = dict[str, Any]

LEVELS: Settings = {"multi_fidelity": True, "low_fidelity": (1,), "fidelity": 2}


def small_run(databases: Path, folder: Path) -> Settings:
    """Settings of a run of a second: four batches an epoch, the last of one structure."""
    return {
        "input": (str(databases / "*.db"),),
        "prepared": folder / "prepared",
        "output": folder / "run",
        "n_radial": 6,
        "n_angular_radial": 2,
        "n_angular": 3,
        "neurons": (8, 4, 1),
        "activations": ("gaussian", "gaussian", "identity"),
        "split": (16, 4, 4),
        "batch_size": 5,
        "learning_rate": 1e-2,
        "epochs": 4,
        "compile": "off",
        "threads": 1,
    }


class Listener:
    """A reporter that remembers what it heard, and may interrupt."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.features: list[str] = []
        self.reused: bool | None = None
        self.epochs = 0
        self._before = 0.0
        self.result: RunResult | None = None
        self._setup: Setup | None = None
        self._interrupt_after = interrupt_after

    @property
    def setup(self) -> Setup:
        assert self._setup is not None
        return self._setup

    def featurizing(self, name: str, total: int) -> Callable[[int], None]:
        self.features.append(f"{name} of {total}")
        return lambda _: None

    def prepared(self, prepared: PreparedSet, seconds: float) -> None:
        assert seconds >= 0
        self.reused = prepared.reused

    def ready(self, setup: Setup) -> None:
        self._setup = setup

    def epoch(self, record: dict[str, float], epochs: int) -> None:
        if self.epochs == 0:
            self._before = record["epoch"] - 1  # of a run that is resumed
        self.epochs += 1
        assert record["epoch"] == self._before + self.epochs <= epochs
        if self.epochs == self._interrupt_after:
            signal.raise_signal(signal.SIGINT)

    def finished(self, result: RunResult) -> None:
        self.result = result


def run(settings: Settings, overwrite: bool = False, **more: Any) -> RunResult:
    return fit(build_config({**settings, **more}), Listener(), overwrite)


def heard(settings: Settings, **more: Any) -> tuple[RunResult, Setup]:
    """A run, and how it stood before its first epoch."""
    listener = Listener()
    result = fit(build_config({**settings, **more}), listener)
    return result, listener.setup


def changed_copy(source: Path, folder: Path, statement: str) -> Path:
    """A database with an SQL statement run on it."""
    copy = folder / source.name
    copy.write_bytes(source.read_bytes())
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute(statement)
    return copy


def lines_of(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def timeless(records: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint of a run."""
    found: dict[str, torch.Tensor] = load_file(newest_checkpoint(directory))
    return found


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found = dict(file.metadata())
    return found | ({"training": json.loads(found["training"])} if "training" in found else {})


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit, but for the time that it took."""
    assert timeless(lines_of(one)) == timeless(lines_of(other))
    checkpoints = [newest_checkpoint(directory) for directory in (one, other)]
    assert checkpoints[0].name == checkpoints[1].name
    for pair in (checkpoints, [directory / "model.safetensors" for directory in (one, other)]):
        mine, theirs = map(load_file, pair)
        assert mine.keys() == theirs.keys()
        assert_same(mine, theirs)
        assert metadata_of(pair[0]) == metadata_of(pair[1])


def assert_close_run(one: Path, other: Path, tolerance: float = 1e-10) -> None:
    """To rounding: parameters, moments and records."""
    assert newest_checkpoint(one).name == newest_checkpoint(other).name
    found, expected = tensors_of(one), tensors_of(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    for mine, theirs in zip(timeless(lines_of(one)), timeless(lines_of(other)), strict=True):
        assert mine == pytest.approx(theirs, rel=10 * tolerance)


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        assert torch.equal(a, b)


def differ(one: Any, other: Any) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))
