"""Pieces read by other processes: as in this one, errors too, and none is left when it is over."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import made_sets
import psutil
import pytest

from pykinml_func.data.formats.database import write_database
from pykinml_func.data.formats.rows import Query
from pykinml_func.data.preparing import piece_workers
from pykinml_func.data.preparing.piece_workers import read_pieces
from pykinml_func.data.preparing.pieces import Piece, plan_pieces, read_blocks
from pykinml_func.errors import DataError
from pykinml_func.types import Structures


@pytest.fixture
def folder(tmp_path: Path, make_structures: Callable[..., Structures], monkeypatch: pytest.MonkeyPatch) -> Path:
    for module, name, value in made_sets.SMALL:
        monkeypatch.setattr(module, name, value)
    structures = make_structures(["H2"] * 20)
    write_database(tmp_path / "H2.db", structures.take([k % 20 for k in range(4500)]), {1: "made up"})
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    return tmp_path


def planned(folder: Path) -> list[Piece]:
    return plan_pieces({folder / "H2.db": "sqlite"}, Query([1]))


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def contents(folder: Path, pieces: list[Piece]) -> list[list[object]]:
    return [
        [block.ids.tolist(), block.positions.tolist()] for piece in pieces for block in read_blocks(folder / piece.name)
    ]


def test_pieces_are_the_same_and_come_in_order(folder: Path):
    pieces, seen = planned(folder), set()
    assert list(read_pieces(pieces, folder / "here", 1)) == pieces
    for number, piece in enumerate(read_pieces(pieces, folder / "there", 3)):
        seen |= {child.pid for child in children()}
        assert piece is pieces[number]
        assert (folder / "there" / piece.name).exists()
    assert len(seen) == 3
    assert contents(folder / "there", pieces) == contents(folder / "here", pieces)
    assert not children()


def test_few_pieces_need_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(piece_workers, "_ROWS_A_WORKER", 2250)
    monkeypatch.setattr(piece_workers, "_Worker", lambda *_: pytest.fail("a process was started"))
    assert len(list(read_pieces(planned(folder)[:3], folder / "here", 8))) == 3
    assert len(list(read_pieces(planned(folder), folder / "there", 1))) == 5
    with pytest.raises(pytest.fail.Exception):
        list(read_pieces(planned(folder), folder / "there", 2))


def test_the_first_error_in_the_order_of_rows_is_told(folder: Path):
    with closing(sqlite3.connect(folder / "H2.db")) as connection, connection:
        connection.execute("UPDATE xyz SET temp = 'hot' WHERE id IN (1500, 2200, 4400)")
    told = []
    for workers in (1, 2):
        with pytest.raises(DataError) as caught:
            list(read_pieces(planned(folder), folder / "here", workers))
        told.append(str(caught.value))
    assert told[0] == told[1] and "xyz row 1500: temp must be a number" in told[0]
    assert not children()


def test_a_process_that_is_killed_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """On its last piece, before which a busy machine may have let it finish all others."""
    pieces, ask = planned(folder), piece_workers._Worker.ask

    def ask_one_that_was_killed(worker: piece_workers._Worker, piece: Piece) -> None:
        if piece is pieces[-1]:
            worker._process.kill()
            worker._process.wait()
        ask(worker, piece)

    monkeypatch.setattr(piece_workers._Worker, "ask", ask_one_that_was_killed)
    with pytest.raises(DataError, match=r"H2\.db must be read to its end, .* ended with code -9 .*run again"):
        list(read_pieces(pieces, folder / "here", 2))
    assert not children()


def test_an_interrupt_ends_the_processes(folder: Path):
    reading = read_pieces(planned(folder), folder / "here", 2)
    next(reading)
    assert len(children()) == 2
    with pytest.raises(KeyboardInterrupt):
        reading.throw(KeyboardInterrupt())
    assert not children()


_SCRIPT = """
import sys
from pathlib import Path
import made_sets
for module, name, value in made_sets.SMALL:
    setattr(module, name, value)
print("started", flush=True)
found = made_sets.prepared(Path(sys.argv[1]), 2)
print("torch" in sys.modules, found.structures.n_structures)
"""


def script(folder: Path) -> subprocess.Popen[str]:
    """A user's script without a guard, started by its path."""
    (folder / "script.py").write_text(_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    )


def test_a_script_without_a_guard_is_run_once(folder: Path):
    output, errors = script(folder).communicate(timeout=120)
    assert output.splitlines() == ["started", "True 4500"], errors


def test_ctrl_c_ends_all_of_them(folder: Path):
    process = script(folder)
    running = psutil.Process(process.pid)
    while process.poll() is None and len(running.children()) < 2:
        time.sleep(0.001)
    workers = running.children()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and errors.count("Traceback") == 1, errors
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_workers_load_no_torch():
    code = "import sys; from pykinml_func.data.preparing import piece_workers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False")
