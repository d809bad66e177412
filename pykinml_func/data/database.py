"""PyKinML's SQLite databases: one formula a file, arrays as `.npy` blobs, an `energy` row a fidelity level.

The file's name up to its first dot is the formula, whose atoms in that order are the rows of `geom` and `force`.
# M structures, A atoms in all of them, L fidelity levels, n atoms of one structure
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from ase.symbols import string2symbols

from pykinml_func.data.rows import Found, Label, Query, Row, checked, collect, some, source_label
from pykinml_func.errors import DataError
from pykinml_func.files import write_atomically
from pykinml_func.types import Structures

_SCHEMA = """
CREATE TABLE meta (config TEXT NOT NULL, created_at TIMESTAMP DEFAULT (datetime('now','localtime')));
CREATE TABLE xyz (id integer PRIMARY KEY, calc text, calc_params array, temp real, name text, dist real,
    geom array NOT NULL, created_at TIMESTAMP DEFAULT (datetime('now','localtime')));
CREATE TABLE energy (id integer PRIMARY KEY, fidelity integer, sample_set_id integer, calc text NOT NULL,
    calc_params array, E real NOT NULL, force array, Hessian array, xyz_id integer NOT NULL,
    created_at TIMESTAMP DEFAULT (datetime('now','localtime')), FOREIGN KEY (xyz_id) REFERENCES xyz (id));
"""

_FILTERS = """(:names IS NULL OR EXISTS (SELECT 1 FROM json_each(:names) WHERE xyz.name LIKE value))
  AND (:temperature IS NULL OR xyz.temp = :temperature)
  AND (:ids IS NULL OR xyz.id IN (SELECT value FROM json_each(:ids)))"""

_QUERY = f"""
SELECT xyz.id, xyz.geom, xyz.name, xyz.temp, energy.xyz_id, energy.fidelity, energy.E, energy.force
FROM xyz LEFT JOIN energy ON :labels AND energy.xyz_id = xyz.id
WHERE (energy.xyz_id IS NOT NULL OR NOT :labels)
  AND (:levels IS NULL OR energy.fidelity IN (SELECT value FROM json_each(:levels)))
  AND {_FILTERS}
ORDER BY xyz.id, energy.fidelity
"""

_COUNT = f"SELECT count(*) FROM xyz WHERE {_FILTERS}"


def formula_symbols(path: Path) -> list[str]:
    """Element symbols from a file's name: C5H5.db holds CCCCCHHHHH. Raises DataError where it is no formula."""
    formula = path.name.split(".")[0]
    try:
        symbols: list[str] = string2symbols(formula)
    except ValueError:
        symbols = []
    if not symbols or not all(atomic_numbers.get(symbol) for symbol in symbols):  # ASE's X, a dummy, has number 0
        raise DataError(f"the name of {path} must be a chemical formula, such as C5H5.db, got {formula!r}")
    return symbols


def read_databases(
    paths: Sequence[Path],
    levels: Sequence[int] | None = None,
    names: Sequence[str] = (),
    temperature: float | None = None,
    ids: Sequence[str] | None = None,
    *,
    labels: bool = True,
) -> Structures:
    """Structures of several databases that have an energy at one of `levels` (default: at any).

    names: SQL LIKE patterns, of which one must match; temperature: K; ids: 'C5H5/12', each of which must be there.
    labels: False reads geometries alone, those without energies too; `levels` is then of no account.
    Blobs are never unpickled. Raises DataError for a file, a row or an id that cannot be used.
    """
    query = Query(levels, names, temperature, None if ids is None else set(ids), labels)
    rows = [row for path in paths for row in read_database(path, query).rows]
    return collect(rows, query, paths, lambda path: database_contents(path, query))


def read_database(path: Path, query: Query) -> Found:
    """The structures of one database. Raises DataError."""
    values = {
        "labels": query.labels,
        "levels": _levels(query),
        "names": json.dumps(list(query.names)) if query.names else None,
        "temperature": query.temperature,
        "ids": None if query.ids is None else json.dumps(_ids_in(path, query.ids)),
    }
    numbers = np.array([atomic_numbers[symbol] for symbol in formula_symbols(path)])
    with closing(_connect(path)) as connection:
        try:
            (n_passing,) = connection.execute(_COUNT, values).fetchone()
            groups = groupby(connection.execute(_QUERY, values), key=lambda row: row[0])
            rows = [_read_structure(path, row_id, list(group), numbers) for row_id, group in groups]
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} must be a PyKinML SQLite database (tables xyz and energy): {error}") from None
    return Found(rows, n_passing - len(rows))


def _levels(query: Query) -> str | None:
    if query.levels is None or not query.labels:
        return None
    return json.dumps([int(level) for level in query.levels])


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.OperationalError as error:
        raise DataError(f"{path} cannot be opened: {error}") from None


def _read_structure(path: Path, row_id: int, group: list[tuple[Any, ...]], numbers: np.ndarray) -> Row:
    where = f"{path}, xyz row {row_id}"
    _, geometry, name, temperature, *_ = group[0]
    labels: dict[int, Label] = {}
    for *_, labelled, level, value, force in group:
        if labelled is None:
            continue
        if not isinstance(level, int):
            raise DataError(
                f"{where}: energy.fidelity must be a whole number, got {level!r}; correct or delete its row"
            )
        if level in labels:
            raise DataError(f"{where} must have one energy a fidelity level, got two at level {level}; delete one row")
        labels[level] = value, None if force is None else _array(force, f"{where}, force at level {level}")
    positions = _array(geometry, f"{where}, geom")
    if not isinstance(temperature, float | int | None):
        raise DataError(f"{where}: temp must be a number of K or NULL, got {temperature!r}; correct it")
    kelvin = np.nan if temperature is None else float(temperature)
    row = Row(f"{source_label(path)}/{row_id}", numbers, positions, name or "", kelvin, labels)
    return checked(row, where, ("geom", "E", "force"), "the formula is the file's name")


def _array(blob: bytes, where: str) -> np.ndarray:
    """An array from a `.npy` blob, never unpickled."""
    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(blob), allow_pickle=False)
    except (ValueError, TypeError, SyntaxError, TokenError):
        raise DataError(
            f"{where} must be a plain .npy array; what is there is pickled or broken and is not loaded, since a "
            "pickle can run code: write the row again with numpy.save(..., allow_pickle=False)"
        ) from None
    return array


def _ids_in(path: Path, ids: Iterable[str]) -> list[int]:
    """The xyz ids of `path` among 'LABEL/xyz_id' ids; what is no number is nobody's id."""
    parts = [text.rpartition("/") for text in ids]
    return [int(number) for label, _, number in parts if label == source_label(path) and number.isdecimal()]


def database_contents(path: Path, _: Query) -> str:
    """What a database holds, for an error message."""
    with closing(_connect(path)) as connection:
        counts = connection.execute("SELECT fidelity, count(*) FROM energy GROUP BY fidelity").fetchall()
        names = [name for (name,) in connection.execute("SELECT DISTINCT name FROM xyz LIMIT 6")]
        kelvins = [f"{value}" for (value,) in connection.execute("SELECT DISTINCT temp FROM xyz ORDER BY temp LIMIT 6")]
    levels = ", ".join(f"{count} at fidelity {level}" for level, count in counts)
    return f"{path.name}: {levels or 'no energies'}; names {some(names)}; temperatures {some(kelvins)}"


def write_database(path: Path, structures: Structures, methods: Mapping[int, str]) -> None:
    """Write structures of one formula as a PyKinML database, xyz ids 1..M in their order.

    path: named by the formula; methods: level -> text for `energy.calc`, such as 'GFN1-xTB'. Raises DataError where the
    atoms are not those of the formula in its order, there is no structure, or no folder to write to. Structure ids are
    not kept: PyKinML derives them from file and row.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path} must go to a folder that is there; make {path.parent} first")
    if structures.n_structures == 0:
        raise DataError(f"{path} must hold at least one structure, got none")
    numbers = [atomic_numbers[symbol] for symbol in formula_symbols(path)]
    expected = np.tile(numbers, structures.n_structures)
    if not np.array_equal(structures.numbers, expected):
        raise DataError(
            f"{path} must hold structures whose atoms are {path.name.split('.')[0]} in that order; others came"
        )

    unnamed = set(structures.levels.tolist()) - set(methods)
    if unnamed:
        raise DataError(f"methods must name the method of every level, got none for {some(sorted(unnamed))}")

    def write(temporary: Path) -> None:
        with closing(sqlite3.connect(temporary)) as connection, connection:
            connection.executescript(_SCHEMA)
            connection.execute("INSERT INTO meta (config) VALUES (?)", (source_label(path),))
            for m in range(structures.n_structures):
                _insert(connection, structures, m, f"{source_label(path)}/{m + 1}", methods)

    write_atomically(path, write)


def _insert(
    connection: sqlite3.Connection, structures: Structures, m: int, label: str, methods: Mapping[int, str]
) -> None:
    atoms = slice(structures.offsets[m], structures.offsets[m + 1])
    tag = _blob(np.array([["label", label]]))
    kelvin = float(structures.temperatures[m])
    connection.execute(
        "INSERT INTO xyz (id, calc_params, temp, name, geom) VALUES (?, ?, ?, ?, ?)",
        (
            m + 1,
            tag,
            None if np.isnan(kelvin) else kelvin,
            str(structures.names[m]),
            _blob(structures.positions[atoms]),
        ),
    )
    for column, level in enumerate(structures.levels.tolist()):
        value, force = float(structures.energies[m, column]), structures.forces[atoms, column]
        if np.isfinite(value):
            connection.execute(
                "INSERT INTO energy (fidelity, calc, calc_params, E, force, xyz_id) VALUES (?, ?, ?, ?, ?, ?)",
                (level, methods[level], tag, value, _blob(force) if np.isfinite(force).all() else None, m + 1),
            )


def _blob(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
