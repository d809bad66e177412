"""What the tests of whole runs share: a run, what a reporter heard of it, and comparisons."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from pykinml_func.config.build import build_config
from pykinml_func.data.prepared import PreparedSet
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import RunResult, Setup

Settings = dict[str, Any]


class Listener:
    """A reporter that remembers what it heard, and may interrupt."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.features: list[str] = []
        self.reused: bool | None = None
        self.epochs = 0
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
        self.epochs += 1
        assert record["epoch"] == self.epochs <= epochs
        if self.epochs == self._interrupt_after:
            raise KeyboardInterrupt

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


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        assert torch.equal(a, b)


def differ(one: Any, other: Any) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))
