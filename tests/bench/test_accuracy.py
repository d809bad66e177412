from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import accuracy
from bench.accuracy import Point, cell, kept, reached, row, run_ours, run_peer
from bench.peers.problem import images
from pykinml_func import Predictor, load_model
from pykinml_func.errors import PyKinMLError
from pykinml_func.units import KCAL_PER_MOL

ROOT = Path(__file__).parents[2]
POINTS = [Point(1.0, 9.0, 8.0), Point(2.0, 2.0, 1.5), Point(3.0, 3.0, 0.4), Point(4.0, 1.0, 0.9), Point(5.0, 0.5, 0.6)]
"""The third tests well and would not be kept."""


def test_only_a_model_that_would_be_kept_counts() -> None:
    assert [point.seconds for point in kept(POINTS)] == [1.0, 2.0, 4.0, 5.0]
    assert reached(POINTS, 1.0) == 4.0
    assert reached(POINTS, 0.5) is None


def test_an_error_that_is_exceeded_later_is_not_reached() -> None:
    lucky = [Point(1.0, 3.0, 0.3), Point(2.0, 2.0, 0.7), Point(3.0, 1.0, 0.4), Point(4.0, 0.5, 0.45)]
    assert reached(lucky, 0.5) == 3.0
    assert reached(lucky[:2], 0.5) is None


def test_a_cell_tells_median_and_range_or_the_best_that_was_reached() -> None:
    rows = [row("ours", seed, [Point(10.0 + seed, 1.0, 0.9)], 50.0) for seed in (0, 4, 1)]
    assert cell(rows, 1.0) == "11 s (10 to 14)"
    assert cell(rows[:1], 1.0) == "10 s"
    assert cell(rows, 0.5) == "not reached in 3 of 3 runs (best 0.90)"
    assert cell([row("pykinml", 0, POINTS, 600.0)], 0.5) == "not reached (best 0.60)"


def test_a_run_of_ours_is_dated_and_tested_epoch_by_epoch(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "OURS", ("--recipe", "fast", "--epochs", "2", "--compile", "off"))
    points, whole = run_ours(shared / "data", tmp_path, 5, 1)
    lines = (tmp_path / "run_5/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [point.valid_rmse for point in points] == [record["valid_energy_rmse"] for record in records]
    assert 0 < points[0].seconds < points[1].seconds < whole
    tested = accuracy._tested(shared / "data")
    assert tested.n_structures == 64
    predictor = Predictor(*load_model(tmp_path / "run_5/model.safetensors"))
    energies = np.array([each.energy for each in predictor.predict(images(tested))])
    mae = np.abs(energies - tested.energies[:, 0]).mean() * KCAL_PER_MOL
    assert points[1].test_mae == pytest.approx(mae) and mae < points[0].test_mae


def test_ours_runs_with_every_seed_and_the_others_once(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "run_ours", lambda *given: ([Point(given[2], 1.0, 0.9)], 9.0))
    monkeypatch.setattr(accuracy, "run_peer", lambda *_: (POINTS, 7.0))
    accuracy.main(shared / "data", json_file=tmp_path / "accuracy.json", seeds=2, threads=1, limit=5)
    report = json.loads((tmp_path / "accuracy.json").read_text())
    assert [(row["tool"], row["seed"]) for row in report["rows"]] == [
        *(("ours", 0), ("ours", 1)),
        *(("pykinml", 0), ("torchani", 0)),
    ]
    assert [row["seconds_to"]["1.0"] for row in report["rows"]] == [0, 1, 4, 4]
    options = "--data DIR --seeds 2 --threads 1 --limit 5 --json accuracy.json"
    assert report["command"] == f"python -m bench.accuracy {options}" and report["threads"] == 1


def test_a_tool_that_fails_is_told(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "environment", lambda *_: Path(sys.executable))
    monkeypatch.setattr(accuracy, "TOOLS", {"nothing": "A tool"})
    with pytest.raises(PyKinMLError, match=r"A tool could not be measured: .*nothing_accuracy"):
        run_peer("nothing", shared / "data", tmp_path, 1, 5.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "'--data': must be a folder with C5H5.db and sample_tvt.txt"),
        (["--data", "{data}", "--json", "nowhere/accuracy.json"], "'--json': must be a file in a folder that is there"),
        (["--data", "{data}", "--only", "fennol"], "'fennol' is not one of"),
    ],
)
def test_what_cannot_be_used_is_told_before_any_run(options: list[str], message: str, shared: Path) -> None:
    filled = [option.format(data=shared / "data") for option in options]
    environment = {**os.environ, "COLUMNS": "300"}
    command = [sys.executable, "-m", "bench.accuracy", *filled]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 2
    assert message in done.stderr
