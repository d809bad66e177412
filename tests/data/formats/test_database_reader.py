"""Stretches of a database: each row is in one of them, and those that are alike are read as one by one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pykinml_func.data.formats import database_reader
from pykinml_func.data.formats.alike import read_alike
from pykinml_func.data.formats.blobs import blob_of_array
from pykinml_func.data.formats.blocks import joined
from pykinml_func.data.formats.database import read_databases, write_database
from pykinml_func.data.formats.database_reader import Span, database_spans, read_database
from pykinml_func.data.formats.rows import Query
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

Structured = Callable[..., Structures]


@pytest.fixture
def path(tmp_path: Path, make_structures: Structured) -> Path:
    """Two levels, of which some labels are missing."""
    structures = make_structures(["CH4"] * 12, 1, (0, 1))
    structures.energies[3], structures.energies[5, 0], structures.energies[7, 1] = np.nan, np.nan, np.nan
    structures.forces[10:25, 1] = np.nan
    structures.temperatures[4] = np.nan
    write_database(tmp_path / "CH4.db", structures, {0: "low", 1: "high"})
    return tmp_path / "CH4.db"


def execute(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are counted two by two, and read by no more than four."""
    for name in ("_GROUPS", "_LABEL_GROUPS"):
        monkeypatch.setattr(database_reader, name, getattr(database_reader, name).replace("/ 1000", "/ 2"))
    monkeypatch.setattr(database_reader, "BLOCK_ROWS", 4)


def assert_same(found: Structures, expected: Structures) -> None:
    for name, a, b in zip(Structures._fields, found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name


QUERIES = {
    "all": Query([0, 1]),
    "one level": Query([0]),
    "any level": Query(),
    "names": Query([1], names=["name1"]),
    "temperature": Query([1], temperature=300.0),
    "ids": Query([1], ids={"CH4/2", "CH4/11"}),
    "geometries": Query(labels=False),
}


@pytest.mark.parametrize("what", QUERIES)
def test_rows_that_are_alike_are_read_as_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch, what: str):
    (span,) = database_spans(path, QUERIES[what])
    ((fast, n_fast, _),) = read_database(path, QUERIES[what], span)
    heard: list[Any] = []
    monkeypatch.setattr(database_reader, "read_alike", lambda *given: heard.append(read_alike(*given)))
    ((slow, n_slow, _),) = read_database(path, QUERIES[what], span)
    assert heard[0] is not None, "the fast way must have been taken before"
    assert_same(fast, slow)
    assert n_fast == n_slow == {"one level": 2, "all": 1, "any level": 1}.get(what, n_slow)


ODD: dict[str, tuple[str, Any]] = {
    "float32": ("UPDATE xyz SET geom = ? WHERE id = 2", lambda x: blob_of_array(x.astype(np.float32))),
    "Fortran's order": ("UPDATE xyz SET geom = ? WHERE id = 1", lambda x: blob_of_array(np.asfortranarray(x))),
    "another header": ("UPDATE xyz SET geom = ? WHERE id = 2", lambda x: blob_of_array(x.astype(">f8"))),
    "numbers for names": ("UPDATE xyz SET name = 7, geom = coalesce(NULL, geom) WHERE id = 2 AND ? != ''", lambda _: 1),
}


@pytest.mark.parametrize("what", ODD)
def test_rows_that_are_unlike_are_read_with_care(path: Path, what: str):
    before, (statement, made) = read_databases([path], [1]), ODD[what]
    first = before.positions[:5] if "id = 1" in statement else before.positions[5:10]
    execute(path, statement, made(first))
    found = read_databases([path], [1])
    tolerance = 1e-6 if what == "float32" else 0
    np.testing.assert_allclose(found.positions, before.positions, rtol=0, atol=tolerance)
    assert found.positions.dtype == np.float64
    np.testing.assert_array_equal(found.energies, before.energies)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("column", "where"), [("geom", "geom"), ("force", "force at level 1")])
def test_numbers_that_are_none_are_named(path: Path, column: str, where: str, value: float):
    array = np.arange(15.0).reshape(5, 3)
    array[2, 1] = value
    table, row = ("xyz", "id = 2") if column == "geom" else ("energy", "xyz_id = 2 AND fidelity = 1")
    execute(path, f"UPDATE {table} SET {column} = ? WHERE {row}", blob_of_array(array))
    with pytest.raises(DataError, match=rf"CH4\.db, xyz row 2, {where} must be 5 x 3 finite .* for y of atom 2"):
        list(read_database(path, Query([1])))


@pytest.mark.usefixtures("grouped")
def test_each_row_is_in_one_stretch(path: Path):
    execute(path, "UPDATE xyz SET id = id + 90 WHERE id > 9")
    execute(path, "UPDATE energy SET xyz_id = xyz_id + 90 WHERE xyz_id > 9")
    spans = database_spans(path, Query([1]))
    assert [(span.first, span.last, span.n_passing) for span in spans] == [
        (1, 3, 3),
        (4, 7, 4),
        (8, 101, 4),
        (102, 102, 1),
    ]
    found = [block for span in spans for block in read_database(path, Query([1]), span)]
    whole = joined([block.structures for block in found])
    assert whole.ids.tolist() == [f"CH4/{k}" for k in (1, 2, 3, 5, 6, 7, 9, 100, 101, 102)]
    assert sum(block.n_unlabelled for block in found) == 2


@pytest.mark.usefixtures("grouped")
def test_energies_may_lie_in_any_order(path: Path):
    expected = read_databases([path])
    execute(path, "UPDATE energy SET id = -id * 7919 % 1009")
    spans = database_spans(path, Query())
    assert spans[0].last_label - spans[0].first_label > 20, "they must be spread"
    assert_same(read_databases([path]), expected)


@pytest.mark.usefixtures("grouped")
def test_stretches_without_a_row_that_passes_are_left_out(path: Path):
    assert [span[:2] for span in database_spans(path, Query([1], ids={"CH4/6", "CH4/10"}))] == [(4, 7), (8, 11)]
    assert database_spans(path, Query([1], names=["none"])) == []


def test_a_stretch_tells_where_its_energies_lie(path: Path):
    assert database_spans(path, Query([1])) == [Span(1, 12, 1, 20, 12)]
