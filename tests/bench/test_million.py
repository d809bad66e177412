"""`bench.million` on a few structures: the commands that it times, and its verdicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bench import million
from bench.made_up import make_database
from bench.million import check_room, measure, prepare, train, verdicts
from bench.peers.problem import MODEL, networks
from pykinml_func import save_model

ROOT = Path(__file__).parents[2]


def test_the_real_commands_are_timed(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(million, "SMALL", 80)
    monkeypatch.setattr(million, "_WARM", 1)
    monkeypatch.setattr(million, "_EPOCHS", 2)
    save_model(tmp_path / "model.safetensors", MODEL, networks())
    make_database(tmp_path / "C5H5.db", 80, shared / "data", tmp_path / "model.safetensors", lambda _: None)
    prepared = prepare(tmp_path, 80, 1)
    assert prepared["seconds"] > 0.5 and prepared["peak_bytes"][0] > 1e8
    assert prepared["prepared_bytes"] > 80 * 480 and prepared["database_bytes"] > 80 * 480
    trained = train(tmp_path, 80, 1)
    assert trained["seconds_a_structure"] == pytest.approx(trained["epoch_seconds"] / 72)
    assert trained["epoch_seconds"] < trained["command_seconds"] and trained["peak_bytes"][0] > 1e8
    assert "took" in (tmp_path / "watched.log").read_text()


def test_the_small_set_is_trained_on_before_and_after_the_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, int, int]] = []

    def prepared(_: Path, size: int, workers: int) -> dict[str, float]:
        asked.append(("prepare", size, workers))
        return {"seconds": 1.0}

    def trained(_: Path, size: int, ranks: int) -> dict[str, float]:
        asked.append(("train", size, ranks))
        return {"seconds_a_structure": 1.0}

    monkeypatch.setattr(million, "prepare", prepared)
    monkeypatch.setattr(million, "train", trained)
    measure({9000: tmp_path, million.SMALL: tmp_path})
    trainings = [(size, number) for name, size, number in asked if name == "train"]
    assert trainings == [(2000, 1), (2000, 2), (9000, 1), (9000, 2), (2000, 1), (2000, 2)]
    assert asked.index(("prepare", 9000, 2)) < asked.index(("train", 2000, 1))


def test_large_is_compared_with_both_small_ones_and_every_process_counts():
    def row(structures: int, ranks: int, seconds: float, peaks: list[float]) -> dict[str, object]:
        return {"structures": structures, "ranks": ranks, "seconds_a_structure": seconds, "peak_bytes": peaks}

    small = [row(2000, ranks, seconds, [9e9]) for ranks in (1, 2) for seconds in (1.0, 3.0)]
    large = [row(10**6, 1, 3.0, [5.0, 1.0]), row(10**6, 2, 1.0, [7.0, 6.0, 1.0])]
    found = verdicts([*small[:2], *large, *small[2:]])
    assert found == [{"ranks": 1, "ratio": 1.5, "peak_bytes": 5.0}, {"ranks": 2, "ratio": 0.5, "peak_bytes": 7.0}]


def test_the_folder_of_the_databases_is_made(tmp_path: Path):
    assert check_room(tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(typer.BadParameter, match="must be a folder, got the file"):
        check_room(tmp_path / "file")


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "bench.million", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    for option in ("--data", "--scratch", "--structures", "--json"):
        assert option in done.stdout
