"""PyKinML's SQLite databases: one formula a file, arrays as `.npy` blobs, an `energy` row a fidelity level.

The file's name up to its first dot is the formula, whose atoms in that order are the rows of `geom` and `force`.
# M structures, A atoms in all of them, L fidelity levels, n atoms of one structure
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from pykinml_func.data.formats.blobs import blob_of_array
from pykinml_func.data.formats.blocks import collect
from pykinml_func.data.formats.database_reader import connect, formula_symbols, read_database
from pykinml_func.data.formats.rows import Query, some, source_label
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
    found = (found for path in paths for found in read_database(path, query))
    return collect(found, query, paths, lambda path: database_contents(path, query))


def database_contents(path: Path, _: Query) -> str:
    """What a database holds, for an error message."""
    with closing(connect(path)) as connection:
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
    tag = blob_of_array(np.array([["label", label]]))
    kelvin = float(structures.temperatures[m])
    connection.execute(
        "INSERT INTO xyz (id, calc_params, temp, name, geom) VALUES (?, ?, ?, ?, ?)",
        (
            m + 1,
            tag,
            None if np.isnan(kelvin) else kelvin,
            str(structures.names[m]),
            blob_of_array(structures.positions[atoms]),
        ),
    )
    for column, level in enumerate(structures.levels.tolist()):
        value, force = float(structures.energies[m, column]), structures.forces[atoms, column]
        if np.isfinite(value):
            connection.execute(
                "INSERT INTO energy (fidelity, calc, calc_params, E, force, xyz_id) VALUES (?, ?, ?, ?, ?, ?)",
                (level, methods[level], tag, value, blob_of_array(force) if np.isfinite(force).all() else None, m + 1),
            )
