"""Databases: what is written is read, filters select, and nothing that is broken or dangerous passes."""

from __future__ import annotations

import io
import pickle
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykinml_func.data.formats.database import formula_symbols, read_databases, write_database
from pykinml_func.data.formats.sources import find_inputs
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

Structured = Callable[..., Structures]
METHODS = {0: "GFN1-xTB", 1: "wB97X-D/6-311++G(d,p)"}


@pytest.fixture
def two(tmp_path: Path, make_structures: Structured) -> tuple[Path, Structures]:
    """A folder with CH4.db (6 structures) and H2O.db (4), both at levels 0 and 1; and CH4's structures."""
    methane, water = make_structures(["CH4"] * 6, 1, (0, 1)), make_structures(["H2O"] * 4, 2, (0, 1))
    write_database(tmp_path / "CH4.db", methane, METHODS)
    write_database(tmp_path / "H2O.db", water, METHODS)
    return tmp_path, methane


def blob(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def execute(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


def assert_same(found: Structures, expected: Structures) -> None:
    for name, a, b in zip(Structures._fields, found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_what_is_written_is_read(tmp_path: Path, make_structures: Structured):
    structures = make_structures(["CH3OH"] * 5, 0, (0, 1, 3))
    structures.energies[1, 0] = np.nan  # not calculated at level 0
    structures.forces[6:12, 0] = np.nan
    structures.forces[12:18, 2] = np.nan  # energies without forces
    structures.temperatures[3] = np.nan
    write_database(tmp_path / "CH3OH.db", structures, {0: "a", 1: "b", 3: "c"})
    assert_same(read_databases([tmp_path / "CH3OH.db"]), structures)


def test_atoms_follow_the_formula(tmp_path: Path, make_structures: Structured):
    with pytest.raises(DataError, match="atoms are HOCH3 in that order"):
        write_database(tmp_path / "HOCH3.db", make_structures(["CH3OH"]), METHODS)
    assert not list(tmp_path.iterdir()), "a refused database must leave nothing behind"


def test_files_are_read_one_after_the_other(two: tuple[Path, Structures]):
    folder, methane = two
    found = read_databases([folder / "H2O.db", folder / "CH4.db"], [1])
    assert found.ids.tolist() == [f"H2O/{k}" for k in range(1, 5)] + [f"CH4/{k}" for k in range(1, 7)]
    np.testing.assert_array_equal(found.energies[4:, 0], methane.energies[:, 1])
    np.testing.assert_array_equal(found.positions[12:], methane.positions)


def test_fidelity_levels_are_selected(two: tuple[Path, Structures]):
    folder, methane = two
    execute(folder / "CH4.db", "DELETE FROM energy WHERE fidelity = 0 AND xyz_id > 2")
    low = read_databases([folder / "CH4.db"], [0])
    assert low.levels.tolist() == [0]
    assert low.ids.tolist() == ["CH4/1", "CH4/2"]
    np.testing.assert_array_equal(low.forces[:, 0], methane.forces[:10, 0])
    both = read_databases([folder / "CH4.db"], [1, 0])
    assert both.levels.tolist() == [0, 1]
    np.testing.assert_array_equal(np.isnan(both.energies), [[False, False]] * 2 + [[True, False]] * 4)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"names": ["name0"]}, [1, 4]),
        ({"names": ["name0", "%2"]}, [1, 3, 4, 6]),
        ({"names": ["NAME_"]}, [1, 2, 3, 4, 5, 6]),
        ({"names": ["name1'; DROP TABLE xyz; --", "name1"]}, [2, 5]),
        ({"temperature": 400}, [2, 4, 6]),
        ({"temperature": 400.0, "names": ["name0"]}, [4]),
        ({"ids": ["CH4/5", "CH4/2"]}, [2, 5]),
        ({"ids": ["CH4/5", "CH4/2"], "names": ["name1"], "temperature": 300}, None),
    ],
)
def test_filters(two: tuple[Path, Structures], filters: dict[str, Any], expected: list[int] | None):
    path = two[0] / "CH4.db"
    if expected is None:
        with pytest.raises(DataError, match="1 of 2 structures are not in the input with these filters: CH4/2; add"):
            read_databases([path], [1], **filters)
        return
    assert read_databases([path], [1], **filters).ids.tolist() == [f"CH4/{k}" for k in expected]


@pytest.mark.parametrize("absent", ["CH4/01", "CH4/99", "C9H9/1", "CH4", "CH4/first"])
def test_ids_that_are_not_there_are_named(two: tuple[Path, Structures], absent: str):
    with pytest.raises(DataError, match=f"1 of 2 structures are not .*: {absent}; .* or drop their lines"):
        read_databases([two[0] / "CH4.db"], [1], ids=["CH4/1", absent])


def test_filters_that_nothing_passes_say_what_the_file_holds(two: tuple[Path, Structures]):
    with pytest.raises(
        DataError, match=re.escape("CH4.db: 6 at fidelity 0, 6 at fidelity 1; names name0, name1, name2")
    ):
        read_databases([two[0] / "CH4.db"], [7])
    with pytest.raises(DataError, match=r"no structure of .*names red%, temperature any.*the files hold"):
        read_databases([two[0] / "CH4.db"], names=["red%"])
    with pytest.raises(DataError, match=r"temperature 0\);.*temperatures 300\.0, 400\.0"):
        read_databases([two[0] / "CH4.db"], temperature=0.0)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.bait,)


@pytest.mark.parametrize(
    "wrap", [pickle.dumps, lambda trap: blob(np.array([trap]), allow_pickle=True)], ids=["pickle", "npy"]
)
@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE xyz SET geom = ? WHERE id = 3", "xyz row 3, geom"),
        ("UPDATE energy SET force = ? WHERE xyz_id = 3 AND fidelity = 1", "xyz row 3, force at level 1"),
    ],
)
def test_a_pickle_is_refused_and_not_run(
    two: tuple[Path, Structures], tmp_path: Path, wrap: Callable[[Trap], bytes], statement: str, where: str
):
    bait, path = tmp_path / "executed", two[0] / "CH4.db"
    np.load(io.BytesIO(wrap(Trap(bait))), allow_pickle=True)
    assert bait.exists(), "the trap must work"
    bait.unlink()
    execute(path, statement, wrap(Trap(bait)))
    with pytest.raises(DataError, match=f"{re.escape(str(path))}, {where} must be a plain .npy array"):
        read_databases([path])
    assert not bait.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (blob(np.zeros((4, 3))), r"must be 5 x 3 finite numbers .* got float64 of shape \(4, 3\)"),
        (blob(np.zeros((5, 3, 1))), "must be 5 x 3 finite numbers"),
        (blob(np.full((5, 3), np.nan)), "must be 5 x 3 finite numbers"),
        (blob(np.full((5, 3), np.inf)), "must be 5 x 3 finite numbers"),
        (blob(np.array([["1.0"] * 3] * 5)), "must be 5 x 3 finite numbers"),
        (blob(np.zeros((5, 3)) * 1j), "must be 5 x 3 finite numbers"),
        (blob(np.zeros((5, 3)))[:-8], "must be a plain .npy array"),
        (b"\x93NUMPY\x01\x00\x20\x00{'descr': '<f8', 'shape': (5, 3 ", "must be a plain .npy array"),
        (b"", "must be a plain .npy array"),
        (b"PK\x03\x04 an archive", "must be a plain .npy array"),
        ("text", "must be a plain .npy array"),
    ],
)
def test_broken_arrays_are_refused(two: tuple[Path, Structures], value: bytes | str, message: str):
    path = two[0] / "CH4.db"
    execute(path, "UPDATE xyz SET geom = ? WHERE id = 2", value)
    with pytest.raises(DataError, match=f"xyz row 2, geom {message}"):
        read_databases([path])


@given(start=st.binary(max_size=80), cut=st.integers(0, 128))
def test_no_bytes_pass_for_an_array(
    tmp_path_factory: pytest.TempPathFactory, make_structures: Structured, start: bytes, cut: int
):
    path = tmp_path_factory.mktemp("bytes") / "CH4.db"
    write_database(path, make_structures(["CH4"]), METHODS)
    execute(path, "UPDATE xyz SET geom = ?", start + blob(np.zeros((5, 3)))[cut + 1 :])
    with pytest.raises(DataError, match="xyz row 1, geom must be"):
        read_databases([path])


@pytest.mark.parametrize("value", [np.inf, "minus one thousand"])
def test_energies_must_be_finite_numbers(two: tuple[Path, Structures], value: float | str):
    path = two[0] / "CH4.db"
    execute(path, "UPDATE energy SET E = ? WHERE xyz_id = 4 AND fidelity = 1", value)
    with pytest.raises(DataError, match="xyz row 4, E at level 1 must be a finite number of eV"):
        read_databases([path])


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE xyz SET temp = '300K' WHERE id = 2", "xyz row 2: temp must be a number of K or NULL, got '300K'"),
        ("UPDATE energy SET fidelity = NULL WHERE xyz_id = 2", "xyz row 2: energy.fidelity must be .*, got None"),
        ("UPDATE energy SET fidelity = 'low' WHERE xyz_id = 2", "xyz row 2: energy.fidelity must be .*, got 'low'"),
    ],
)
def test_columns_of_another_kind_are_refused(two: tuple[Path, Structures], statement: str, message: str):
    execute(two[0] / "CH4.db", statement)
    with pytest.raises(DataError, match=rf"CH4\.db, {message}"):
        read_databases([two[0] / "CH4.db"])


def test_two_atoms_in_one_place_are_refused(two: tuple[Path, Structures]):
    path, positions = two[0] / "CH4.db", two[1].positions[10:15].copy()
    positions[4] = positions[1] + [0, 5e-4, 0]
    execute(path, "UPDATE xyz SET geom = ? WHERE id = 3", blob(positions))
    with pytest.raises(DataError, match=r"xyz row 3, geom must have .* 0\.001 Å apart, got atoms 1 and 4 in one place"):
        read_databases([path])


def test_geometries_alone_are_read_whole(two: tuple[Path, Structures]):
    path, methane = two[0] / "CH4.db", two[1]
    execute(path, "DELETE FROM energy WHERE xyz_id > 2")
    assert read_databases([path]).n_structures == 2
    found = read_databases([path], labels=False)
    assert found.ids.tolist() == methane.ids.tolist()
    np.testing.assert_array_equal(found.positions, methane.positions)
    assert (found.levels.size, found.energies.shape, found.forces.shape) == (0, (6, 0), (30, 0, 3))
    assert read_databases([path], names=["name2"], labels=False).n_structures == 2


def test_a_database_needs_a_folder_and_structures(tmp_path: Path, make_structures: Structured):
    with pytest.raises(DataError, match=r"must go to a folder that is there; make .*none first"):
        write_database(tmp_path / "none" / "CH4.db", make_structures(["CH4"]), METHODS)
    one = make_structures(["CH4"])
    none = Structures(*(array[:1] if name == "offsets" else array[:0] for name, array in one._asdict().items()))
    with pytest.raises(DataError, match="at least one structure, got none"):
        write_database(tmp_path / "CH4.db", none, METHODS)


def test_a_level_may_not_come_twice(two: tuple[Path, Structures]):
    path = two[0] / "CH4.db"
    execute(path, "UPDATE energy SET fidelity = 1 WHERE xyz_id = 5")
    with pytest.raises(DataError, match="xyz row 5 must have one energy a fidelity level, got two at level 1"):
        read_databases([path])


@pytest.mark.parametrize("content", [b"not a database, but long enough to be one" * 10, b""])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes):
    (tmp_path / "CH4.db").write_bytes(content)
    with pytest.raises(DataError, match=r"CH4\.db must be a PyKinML SQLite database"):
        read_databases([tmp_path / "CH4.db"])


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"CH4\.db cannot be opened"):
        read_databases([tmp_path / "CH4.db"])
    assert not list(tmp_path.iterdir()), "SQLite creates what it opens unless told not to"


@pytest.mark.parametrize("name", ["molecules.db", "C5X5.db", ".db", "5.db", "c5h5.db"])
def test_a_file_name_that_is_no_formula(name: str):
    with pytest.raises(DataError, match="must be a chemical formula, such as C5H5"):
        formula_symbols(Path(name))


def test_the_formula_gives_the_atoms_in_its_order():
    assert formula_symbols(Path("C2H3.db")) == ["C", "C", "H", "H", "H"]
    assert formula_symbols(Path("CH3OH.low.db")) == ["C", "H", "H", "H", "O", "H"]


def test_the_real_databases_hold_what_their_readme_says(shared: Path):
    found = read_databases(find_inputs([str(shared / "data" / "C?H?.db")]))
    assert found.n_structures == 2112 + 4 * 14
    assert found.levels.tolist() == [0, 1]
    large = read_databases([shared / "data" / "C5H5.db"], [1])
    assert np.isfinite(large.forces).all()
    assert -5263.9 < large.energies.min() < large.energies.max() < -5260.6


def test_pykinml_reads_what_we_write(tmp_path: Path, make_structures: Structured, capsys: pytest.CaptureFixture[str]):
    pykinml = pytest.importorskip("pykinml.data")
    structures = make_structures(["CH3OH"] * 4, 0, (0, 1))
    write_database(tmp_path / "CH3OH.db", structures, METHODS)
    for column, level in enumerate(structures.levels.tolist()):
        geometries, number, labels = pykinml.sqldb_parse_xyz(str(tmp_path / "CH3OH.db"), fid=level)
        assert number == 4
        for m, ((symbols, positions), (row, name, method, tag, force, value)) in enumerate(
            zip(geometries, labels, strict=True)
        ):
            atoms = slice(6 * m, 6 * m + 6)
            assert symbols == ["C", "H", "H", "H", "O", "H"]
            assert (row, name, method, value) == (
                m + 1,
                structures.names[m],
                METHODS[level],
                structures.energies[m, column],
            )
            assert tag.tolist() == [["label", f"CH3OH/{m + 1}"]]
            np.testing.assert_array_equal(positions, structures.positions[atoms])
            np.testing.assert_array_equal(force, structures.forces[atoms, column])
    capsys.readouterr()  # PyKinML prints much
