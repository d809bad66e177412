from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import startup
from bench.startup import Case, measure

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "bench.startup"]


def test_a_command_is_timed_to_its_end_or_to_the_line_that_ends_it(tmp_path: Path) -> None:
    code = "import time; time.sleep(0.2); print('  1/200  2.0', flush=True); time.sleep({})"
    assert 0.3 < measure(Case("", (sys.executable, "-c", code.format(0.2))), tmp_path) < 5
    assert 0.2 < measure(Case("", (sys.executable, "-c", code.format(60)), last_word="1/200"), tmp_path) < 5


def test_a_command_that_fails_has_no_time(tmp_path: Path) -> None:
    for code, word in (("raise SystemExit(2)", None), ("pass", "1/200")):
        with pytest.raises(subprocess.CalledProcessError):
            measure(Case("", (sys.executable, "-c", code), last_word=word), tmp_path)


def test_what_is_timed_runs(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's commands on the example data, but for the training to forces, whose compilation takes long."""
    monkeypatch.setattr(startup, "CASES", tuple(case for case in startup.CASES if "forces" not in case.name))
    startup.main(shared / "data", runs=1, json_file=tmp_path / "startup.json")
    report = json.loads((tmp_path / "startup.json").read_text())
    rows = {row["case"]: row for row in report["rows"]}
    assert report["cpus"] == os.cpu_count() and report["cpu"] and report["torch"]
    assert all(0 < row["least"] <= row["seconds"] <= row["most"] for row in rows.values())
    assert rows["python -c pass"]["seconds"] < rows["pykinml --help"]["seconds"]
    assert rows['python -c "import torch"']["seconds"] < rows["pykinml predict, one C5H5"]["seconds"]
    assert rows["pykinml --help"]["target"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "no structure file nowhere/C5H5.db"),
        (["--data", "{data}", "--json", "nowhere/startup.json"], "must be a file in a folder that is there"),
        (["--data", "{data}", "--runs", "0"], "--runs"),
    ],
)
def test_what_cannot_be_used_is_told_before_any_run(options: list[str], message: str, shared: Path) -> None:
    filled = [option.format(data=shared / "data") for option in options]
    done = subprocess.run(
        [*COMMAND, *filled], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "300"}, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "run 0" not in done.stdout
