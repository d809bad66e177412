"""The model on paper: what it counts, and how its parts add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import projection
from bench.projection import Line, Parts, Step, exchange_seconds, measured_parts, operations, projected


def test_a_line_goes_through_two_points():
    line = Line.through((10, 30), (7.0, 17.0))
    assert line.each == pytest.approx(0.5) and line.at(10) == pytest.approx(7) and line.at(100) == pytest.approx(52)


def test_views_are_no_operations_and_every_argument_is_read():
    a, b = torch.ones(2, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    number, n_bytes = operations(lambda first, second: torch.exp(first @ second.T), a, b)
    assert number == 2
    assert n_bytes == 8 * ((6 + 12 + 8) + (8 + 8))


def test_gradients_of_one_gpu_go_nowhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(projection, "NETWORK", 100.0)
    monkeypatch.setattr(projection, "LATENCY", 0.5)
    assert exchange_seconds(50, 1) == 0
    assert exchange_seconds(50, 2) == pytest.approx(0.5 + 1)
    assert exchange_seconds(50, 8) == pytest.approx(0.875 + 3)


def _parts(operations: int, n_bytes: float) -> Parts:
    step = Step(operations, Line(0, n_bytes), 0)
    return Parts(Line(1e-3, 1e-6), step, step, 200_000, 2.0, 480)


def test_a_step_is_bound_by_the_host_or_by_its_kernels():
    launched, computed = (projected(_parts(*of)) for of in ((1000, 1.0), (0, 1e9)))
    for row in launched:
        assert row["step_seconds"] == pytest.approx(1e-3 + 1e-6 * row["share"] + 8e-3 + row["adding"])
    for row in computed:
        assert row["step_seconds"] == pytest.approx(1e9 * row["share"] / projection.BANDWIDTH + row["adding"], rel=0.5)
    last = launched[-1]
    assert last["batch"] == last["gpus"] * last["share"] and last["steps"] == -(-8_000_000 // last["batch"])
    validated = -(-1_000_000 // last["batch"]) * (last["step_seconds"] - last["adding"])
    assert last["epoch_seconds"] == pytest.approx(last["steps"] * last["step_seconds"] + validated + 2)


def test_parts_are_those_of_the_real_steps(shared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(projection, "TRAINED", 10_000)
    monkeypatch.setattr(projection, "_TIMED", (5, 50))
    parts = measured_parts(shared / "data")
    assert parts.train.operations > parts.evaluate.operations > 50
    assert parts.train.n_bytes.each > parts.evaluate.n_bytes.each > 5 * 224 * 8
    assert parts.train.flops > parts.evaluate.flops > 2 * 10 * 224 * 48
    assert parts.gradient_bytes == 8 * 2 * (224 * 48 + 48 * 24 + 24 * 12 + 12)
    assert parts.stored_bytes == 2 * 10 * 3 * 8 and parts.order_seconds > 0
