from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.machine import machine, write_report


def test_figures_stand_below_the_command_and_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_report(Path("figures.json"), "python -m bench.sizes", {"rows": [1.5]})
    report = json.loads((tmp_path / "figures.json").read_text())
    expected = {"command": "python -m bench.sizes --json figures.json", **machine(), "rows": [1.5]}
    assert list(report.items()) == list(expected.items())
    assert report["cpus"] == os.cpu_count() and {"pykinml_func", "python", "torch", "cpu"} < set(report)


def test_a_report_holds_no_folder_of_the_machine(tmp_path: Path):
    write_report(tmp_path / "figures.json", "python -m bench.sizes", {})
    text = (tmp_path / "figures.json").read_text()
    assert "--json figures.json" in text and str(tmp_path) not in text


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_report(None, "python -m bench.sizes", {})
    assert not list(tmp_path.iterdir())
