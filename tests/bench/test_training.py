from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "bench.training"]


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run([*COMMAND, "--help"], check=True, capture_output=True, text=True, cwd=ROOT)
    for option in ("--data", "--epochs", "--threads", "--json"):
        assert option in done.stdout


def test_one_case_measures_an_epoch(shared: Path, tmp_path: Path) -> None:
    options = ["--data", shared / "data", "--epochs", "3", "--threads", "1", "--case", "1", "--scratch", tmp_path]
    done = subprocess.run([*COMMAND, *options], check=True, capture_output=True, text=True, cwd=ROOT)
    row = json.loads(done.stdout)
    assert row["case"] == "energy epoch, eager"
    assert 0 < row["seconds"] < 60 and row["spread"] >= 0 and row["first_epoch"] > 0
    assert 1e8 < row["peak_bytes"] < 1e10
