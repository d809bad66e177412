"""PyKinML's SQLite databases: one formula a file, arrays as `.npy` blobs, an `energy` row a fidelity level.

The file's name up to its first dot is the formula, whose atoms in that order are the rows of `geom` and `force`.
# M structures, A atoms in all of them, L fidelity levels, n atoms of one structure
"""

from __future__ import annotations

import glob
import io
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers
from ase.symbols import string2symbols

from pykinml_func.data.geometry import CLOSEST, closest_pair
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

_QUERY = """
SELECT xyz.id, xyz.geom, xyz.name, xyz.temp, energy.xyz_id, energy.fidelity, energy.E, energy.force
FROM xyz LEFT JOIN energy ON :labels AND energy.xyz_id = xyz.id
WHERE (energy.xyz_id IS NOT NULL OR NOT :labels)
  AND (:levels IS NULL OR energy.fidelity IN (SELECT value FROM json_each(:levels)))
  AND (:names IS NULL OR EXISTS (SELECT 1 FROM json_each(:names) WHERE xyz.name LIKE value))
  AND (:temperature IS NULL OR xyz.temp = :temperature)
  AND (:ids IS NULL OR xyz.id IN (SELECT value FROM json_each(:ids)))
ORDER BY xyz.id, energy.fidelity
"""


def find_databases(patterns: Sequence[str]) -> list[Path]:
    """The files that paths or globs name, each once, in order of name. Raises DataError for one that names none."""
    found: dict[Path, Path] = {}
    for pattern in patterns:
        names = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)  # noqa: PTH207 (absolute patterns)
        matches = [Path(name) for name in sorted(names)]
        if not matches:
            raise DataError(
                f"no database matches {pattern!r} (from {Path.cwd()}); give a path or a glob such as 'data/*.db'"
            )
        for path in matches:
            if path.is_dir():
                raise DataError(f"input must be databases, got {path}, which is a folder; give '{path}/*.db'")
            found.setdefault(path.resolve(), path)
    if not found:
        raise DataError("input must name at least one database, got none; e.g. --input 'data/*.db'")
    paths = list(found.values())
    labels = [database_label(path) for path in paths]
    for label in {label for label in labels if labels.count(label) > 1}:
        raise DataError(
            f"databases must have different names, got two called {label}.db; rename one: the formula ends at the "
            f"first dot, so {label}.second.db will do"
        )
    return sorted(paths, key=lambda path: (path.name, str(path)))


def database_label(path: Path) -> str:
    """What structure ids begin with: 'C5H5' for C5H5.db."""
    return path.stem


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
    rows = [
        structure
        for path in paths
        for structure in _read_database(
            path, levels if labels else None, names, temperature, _ids_in(path, ids), labels
        )
    ]
    absent = sorted(set(ids or ()) - {row.id for row in rows})
    if absent:
        raise DataError(
            f"{len(absent)} of {len(set(ids or ()))} structures are not in the databases with these filters: "
            f"{_some(absent)}; add their databases to input, or drop their lines from the split files"
        )
    if not rows:
        where = ", ".join(str(path) for path in paths)
        kelvin = "any" if temperature is None else f"{temperature:g}"
        raise DataError(
            f"no structure of {where} passes the filters (fidelity {_some(levels or ['any'])}, "
            f"names {_some(names or ['any'])}, temperature {kelvin}); "
            f"the files hold {'; '.join(_contents(path) for path in paths)}"
        )
    return _gather(rows, levels if labels else ())


class _Row(NamedTuple):
    id: str
    numbers: np.ndarray
    positions: np.ndarray
    name: str
    temperature: float
    labels: dict[int, tuple[float, np.ndarray | None]]


def _read_database(
    path: Path,
    levels: Sequence[int] | None,
    names: Sequence[str],
    temperature: float | None,
    ids: Sequence[int] | None,
    labels: bool,
) -> Iterator[_Row]:
    numbers = np.array([atomic_numbers[symbol] for symbol in formula_symbols(path)])
    values = {
        "labels": labels,
        "levels": None if levels is None else json.dumps([int(level) for level in levels]),
        "names": json.dumps(list(names)) if names else None,
        "temperature": temperature,
        "ids": None if ids is None else json.dumps(list(ids)),
    }
    with closing(_connect(path)) as connection:
        try:
            for row_id, group in groupby(connection.execute(_QUERY, values), key=lambda row: row[0]):
                yield _read_structure(path, row_id, list(group), numbers)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} must be a PyKinML SQLite database (tables xyz and energy): {error}") from None


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.OperationalError as error:
        raise DataError(f"{path} cannot be opened: {error}") from None


def _read_structure(path: Path, row_id: int, group: list[tuple[Any, ...]], numbers: np.ndarray) -> _Row:
    where = f"{path}, xyz row {row_id}"
    _, geometry, name, temperature, *_ = group[0]
    labels: dict[int, tuple[float, np.ndarray | None]] = {}
    for *_, labelled, level, value, force in group:
        if labelled is None:
            continue
        if not isinstance(level, int):
            raise DataError(
                f"{where}: energy.fidelity must be a whole number, got {level!r}; correct or delete its row"
            )
        if level in labels:
            raise DataError(f"{where} must have one energy a fidelity level, got two at level {level}; delete one row")
        if not isinstance(value, float | int) or not np.isfinite(value):
            raise DataError(f"{where}, level {level}: E must be a finite number of eV, got {value!r}")
        labels[level] = (
            value,
            None if force is None else _array(force, f"{where}, force at level {level}", len(numbers)),
        )
    positions = _array(geometry, f"{where}, geom", len(numbers))
    pair = closest_pair(positions)
    if pair is not None:
        raise DataError(
            f"{where}, geom must have its atoms at least {CLOSEST:g} Å apart, got atoms {pair[0]} and {pair[1]} in one "
            "place; delete the row"
        )
    if not isinstance(temperature, float | int | None):
        raise DataError(f"{where}: temp must be a number of K or NULL, got {temperature!r}; correct it")
    kelvin = np.nan if temperature is None else float(temperature)
    return _Row(f"{database_label(path)}/{row_id}", numbers, positions, name or "", kelvin, labels)


def _array(blob: bytes, where: str, n_atoms: int) -> np.ndarray:
    """An (n,3) array from a `.npy` blob, never unpickled."""
    try:
        array = np.lib.format.read_array(io.BytesIO(blob), allow_pickle=False)
    except (ValueError, TypeError, SyntaxError, TokenError):
        raise DataError(
            f"{where} must be a plain .npy array; what is there is pickled or broken and is not loaded, since a "
            "pickle can run code: write the row again with numpy.save(..., allow_pickle=False)"
        ) from None
    if array.shape != (n_atoms, 3) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise DataError(
            f"{where} must be {n_atoms} x 3 finite numbers (the formula is the file's name), got {array.dtype} of "
            f"shape {array.shape}"
        )
    return array.astype(np.float64)


def _gather(rows: Sequence[_Row], wanted: Sequence[int] | None) -> Structures:
    levels = sorted({level for row in rows for level in row.labels} if wanted is None else set(wanted))
    sizes = [len(row.numbers) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    energies = np.full((len(rows), len(levels)), np.nan)
    forces = np.full((offsets[-1], len(levels), 3), np.nan)
    for m, row in enumerate(rows):
        for level, (value, force) in row.labels.items():
            energies[m, levels.index(level)] = value
            if force is not None:
                forces[offsets[m] : offsets[m + 1], levels.index(level)] = force
    return Structures(
        np.concatenate([row.numbers for row in rows]),
        np.concatenate([row.positions for row in rows]),
        offsets,
        np.array(levels, dtype=int),
        energies,
        forces,
        np.array([row.id for row in rows]),
        np.array([row.name for row in rows]),
        np.array([row.temperature for row in rows]),
    )


def _ids_in(path: Path, ids: Sequence[str] | None) -> list[int] | None:
    """The xyz ids of `path` among 'LABEL/xyz_id' ids; what is no number is nobody's id."""
    if ids is None:
        return None
    parts = [text.rpartition("/") for text in ids]
    return [int(number) for label, _, number in parts if label == database_label(path) and number.isdecimal()]


def _contents(path: Path) -> str:
    """What a database holds, for an error message."""
    with closing(_connect(path)) as connection:
        counts = connection.execute("SELECT fidelity, count(*) FROM energy GROUP BY fidelity").fetchall()
        names = [name for (name,) in connection.execute("SELECT DISTINCT name FROM xyz LIMIT 6")]
        kelvins = [f"{value}" for (value,) in connection.execute("SELECT DISTINCT temp FROM xyz ORDER BY temp LIMIT 6")]
    levels = ", ".join(f"{count} at fidelity {level}" for level, count in counts)
    return f"{path.name}: {levels or 'no energies'}; names {_some(names)}; temperatures {_some(kelvins)}"


def _some(items: Sequence[object], most: int = 5) -> str:
    return ", ".join(str(item) for item in items[:most]) + (", ..." if len(items) > most else "")


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
        raise DataError(f"methods must name the method of every level, got none for {_some(sorted(unnamed))}")

    def write(temporary: Path) -> None:
        with closing(sqlite3.connect(temporary)) as connection, connection:
            connection.executescript(_SCHEMA)
            connection.execute("INSERT INTO meta (config) VALUES (?)", (database_label(path),))
            for m in range(structures.n_structures):
                _insert(connection, structures, m, f"{database_label(path)}/{m + 1}", methods)

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
