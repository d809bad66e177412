"""Making sets: killed for real and continued, by two processes at once, in constant memory."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import made_sets
import numpy as np
import psutil
import pytest

from pykinml_func.config import DataConfig
from pykinml_func.data import featurize
from pykinml_func.data.formats.database import read_databases, write_database
from pykinml_func.data.prepared import PreparedSet, open_prepared
from pykinml_func.data.preparing import computed, making, pieces
from pykinml_func.data.preparing.piece_workers import read_pieces
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

ROWS = 4500


def grow(path: Path, rows: int) -> None:
    """Copies of the first structure, each with an energy of its own."""
    with closing(sqlite3.connect(path)) as connection, connection:
        numbers = "WITH RECURSIVE n(k) AS (SELECT 2 UNION ALL SELECT k + 1 FROM n WHERE k < ?)"
        connection.execute(
            f"{numbers} INSERT INTO xyz (id, temp, name, geom) SELECT k, temp, name, geom FROM n, xyz WHERE id = 1",
            [rows],
        )
        connection.execute(
            f"{numbers} INSERT INTO energy (fidelity, calc, E, force, xyz_id) "
            "SELECT fidelity, calc, E + k, force, k FROM n, energy WHERE xyz_id = 1",
            [rows],
        )


@pytest.fixture
def folder(tmp_path: Path, make_structures: Callable[..., Structures], monkeypatch: pytest.MonkeyPatch) -> Path:
    for module, name, value in (*made_sets.SMALL, made_sets.STRETCH):
        monkeypatch.setattr(module, name, value)
    write_database(tmp_path / "CO.db", make_structures(["CO"]), {1: "made up"})
    write_database(tmp_path / "H2.db", make_structures(["H2"]), {1: "made up"})
    grow(tmp_path / "H2.db", ROWS)
    return tmp_path


def assert_whole(found: PreparedSet, folder: Path) -> None:
    expected = read_databases([folder / "CO.db", folder / "H2.db"], [1])
    for name, a, b in zip(Structures._fields, found.structures, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    aevs = np.empty(found.aevs.shape)
    featurize.fill_aevs(found.aev, expected, "native", aevs, lambda _: None)
    np.testing.assert_array_equal(found.aevs, aevs)
    assert [path.name for path in found.path.parent.iterdir()] == [found.path.name]
    assert not [path for path in found.path.iterdir() if path.name.startswith(".")]


def killed(folder: Path, name: str, at: int, workers: int = 1) -> None:
    process = made_sets.start(folder, kill_at=(name, at), workers=workers)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.parametrize("workers", [1, 2])
def test_pieces_that_were_read_when_it_was_killed_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int):
    killed(folder, "structures", 2500, workers)
    (part,) = (path for path in (folder / "prepared").iterdir() if path.suffix == ".part")
    there = {path.name: path.stat().st_mtime_ns for path in (part / "pieces").iterdir() if len(path.name) == 16}
    assert 3 <= len(there) <= (5 if workers > 1 else 3)
    read: list[str] = []

    def counted(left: list[pieces.Piece], *rest: object) -> object:
        read.extend(piece.name for piece in left)
        return read_pieces(left, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(making, "read_pieces", counted)
    heard: list[int] = []
    found = made_sets.prepared(folder, heard=lambda name, _: heard.append if name == "structures" else lambda _: None)
    assert not found.reused
    assert not set(read) & set(there)
    assert len(read) + len(there) >= 5, "a worker may have ended its piece after its parent"
    assert sum(heard) == ROWS + 1, "those that were there are told as done"
    assert_whole(found, folder)


@pytest.mark.parametrize("name", ["aevs", "jacobians"])
def test_stretches_that_were_computed_when_it_was_killed_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    killed(folder, name, 2000)
    (record,) = folder.glob(f"prepared/*/.{name}.done")
    done = int(record.read_text().splitlines()[-1].split()[0])
    assert 1000 < done < ROWS
    computed_anew: list[int] = []
    fill = getattr(computed, f"fill_{name}")

    def counted(aev: object, structures: Structures, *rest: object) -> None:
        computed_anew.append(structures.n_structures)
        fill(aev, structures, *rest)

    monkeypatch.setattr(computed, f"fill_{name}", counted)
    found = made_sets.prepared(folder)
    assert found.reused
    assert sum(computed_anew) == ROWS + 1 - done
    assert_whole(found, folder)


@pytest.mark.parametrize("damage", ["the file", "the record", "no record"])
def test_what_is_not_as_it_was_computed_is_computed_again(folder: Path, damage: str):
    killed(folder, "aevs", 2000)
    (part,), (record,) = folder.glob("prepared/*/.aevs.npy.part"), folder.glob("prepared/*/.aevs.done")
    if damage == "the file":
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    elif damage == "the record":
        record.write_text(record.read_text()[:-7] + "\nnonsense\n9999999 1\n")
    else:
        record.unlink()
    assert_whole(made_sets.prepared(folder), folder)


def test_two_processes_make_one_set(folder: Path):
    first = made_sets.start(folder, slow=0.5)
    assert first.stdout is not None
    assert first.stdout.readline() == "structures\n"
    heard: list[str] = []
    second = made_sets.prepared(folder, heard=lambda name, _: heard.append(name) or (lambda _: None))
    output, errors = first.communicate(timeout=120)
    assert output.splitlines()[-1] == "made", errors
    assert second.reused and "structures" not in heard, "the second one must not read"
    assert len(heard) + output.count("aevs") + output.count("jacobians") == 2, "each is computed by one of them"
    assert_whole(second, folder)


def test_a_holder_that_is_killed_is_followed_by_who_waits(folder: Path):
    first = made_sets.start(folder, slow=30.0)
    assert first.stdout is not None
    first.stdout.readline()
    second = made_sets.start(folder)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=3)
    first.kill()
    first.communicate()
    output, errors = second.communicate(timeout=120)
    assert output.splitlines()[-1:] == ["made"], errors
    assert_whole(made_sets.prepared(folder), folder)


def test_a_set_that_cannot_be_made_leaves_nothing(folder: Path):
    with closing(sqlite3.connect(folder / "H2.db")) as connection, connection:
        connection.execute("UPDATE energy SET E = 'none' WHERE xyz_id = 4000")
    for workers in (1, 2):
        with pytest.raises(
            DataError, match=r"H2\.db, xyz row 4000, E at level 1 must be a finite number .* got 'none'"
        ):
            made_sets.prepared(folder, workers)
        assert not (folder / "prepared").exists()


def test_sets_of_other_keys_are_left_alone(folder: Path):
    killed(folder, "structures", 2500)
    (part,) = (path for path in (folder / "prepared").iterdir() if path.suffix == ".part")
    other = DataConfig(input=(str(folder / "CO.db"),), prepared=folder / "prepared")
    open_prepared(other, made_sets.AEV, "float64")
    assert part.exists()
    made_sets.prepared(folder)
    assert not part.exists()


_PEAK = """
import json, sys
from pathlib import Path
import made_sets
from pykinml_func.config import DataConfig
from pykinml_func.data.prepared import open_prepared
data = DataConfig(input=(sys.argv[1],), prepared=Path(sys.argv[1]).parent / "prepared", workers=1)
assert open_prepared(data, made_sets.AEV, "float64").structures.n_structures == int(sys.argv[2])
status = Path("/proc/self/status").read_text()
print(json.dumps(int(status.partition("VmHWM:")[2].split()[0]) * 1024))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of its memory")
def test_memory_does_not_grow_with_the_database(make_structures: Callable[..., Structures], tmp_path: Path):
    peaks = {}
    for rows in (20_000, 60_000):
        (tmp_path / str(rows)).mkdir()
        path = tmp_path / str(rows) / "CH4.db"
        write_database(path, make_structures(["CH4"]), {1: "made up"})
        grow(path, rows)
        command = [sys.executable, "-c", _PEAK, str(path), str(rows)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks[rows] = json.loads(done.stdout)
    assert peaks[60_000] - peaks[20_000] < 8 * 2**20, "labels and positions of 40,000 rows alone are 10 MB"


def test_no_process_is_left(folder: Path):
    """Of a parent that was killed, workers end when their piece is read."""
    killed(folder, "structures", 1, workers=2)

    def left() -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(folder) in word for word in process.info["cmdline"] or ())
        ]

    psutil.wait_procs(left(), timeout=20)
    assert not left()
