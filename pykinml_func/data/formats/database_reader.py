"""Reading PyKinML's SQLite databases in stretches of ids: all rows of a stretch at once where they are alike, else with
care, one by one.

# R rows of a stretch, K of them with labels, L fidelity levels, n atoms of one structure
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers
from ase.symbols import string2symbols

from pykinml_func.data.formats.alike import read_alike
from pykinml_func.data.formats.blobs import array_of_blob
from pykinml_func.data.formats.blocks import BLOCK_ATOMS, BLOCK_ROWS, Found, gathered
from pykinml_func.data.formats.rows import Label, Query, Row, checked, source_label
from pykinml_func.errors import DataError

_GROUP = 1000
"""Ids that are counted together, and read together."""

_FILTERS = """(:names IS NULL OR EXISTS (SELECT 1 FROM json_each(:names) WHERE xyz.name LIKE value))
  AND (:temperature IS NULL OR xyz.temp = :temperature)
  AND (:ids IS NULL OR xyz.id IN (SELECT value FROM json_each(:ids)))"""

_GROUPS = f"""
SELECT id / {_GROUP}, min(id), max(id), count(*), total({_FILTERS}) FROM xyz GROUP BY id / {_GROUP} ORDER BY min(id)
"""

_LABEL_GROUPS = f"SELECT xyz_id / {_GROUP}, min(rowid), max(rowid) FROM energy GROUP BY xyz_id / {_GROUP}"

_GEOMETRIES = f"""
SELECT id, geom, name, temp FROM xyz WHERE id BETWEEN :first AND :last AND {_FILTERS} ORDER BY id
"""

_LABELS = """
SELECT xyz_id, fidelity, E, force FROM energy
WHERE rowid BETWEEN :first_label AND :last_label AND xyz_id BETWEEN :first AND :last
  AND (:levels IS NULL OR fidelity IN (SELECT value FROM json_each(:levels)))
ORDER BY xyz_id, fidelity
"""


class Span(NamedTuple):
    """A stretch of xyz ids, and where its rows in the table of energies lie. All are included."""

    first: int
    last: int
    first_label: int
    last_label: int
    n_passing: int
    """rows that pass the filters"""


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


def connect(path: Path) -> sqlite3.Connection:
    """The database, open for reading. Raises DataError."""
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.OperationalError as error:
        raise DataError(f"{path} cannot be opened: {error}") from None


def database_spans(path: Path, query: Query) -> list[Span]:
    """Stretches of a database that are read at once, those with rows that pass the filters. Raises DataError."""
    most = max(1, min(BLOCK_ROWS, BLOCK_ATOMS // len(formula_symbols(path))))
    spans: list[Span] = []
    n_rows = 0
    with closing(connect(path)) as connection:
        try:
            lying = {row[0]: row[1:] for row in connection.execute(_LABEL_GROUPS)} if query.labels else {}
            for key, first, last, n, n_passing in connection.execute(_GROUPS, _filters(path, query)):
                low, high = lying.get(key, (2**63 - 1, -(2**63)))
                group = Span(first, last, low, high, int(n_passing))
                n_rows += n
                if spans and n_rows <= most:
                    spans[-1] = _merged(spans[-1], group)
                else:
                    spans.append(group)
                    n_rows = n
        except sqlite3.DatabaseError as error:
            raise _no_database(path, error) from None
    return [span for span in spans if span.n_passing]


def _merged(span: Span, after: Span) -> Span:
    ends = min(span.first_label, after.first_label), max(span.last_label, after.last_label)
    return Span(span.first, after.last, *ends, span.n_passing + after.n_passing)


def read_database(path: Path, query: Query, span: Span | None = None) -> Iterator[Found]:
    """The structures of one database, or of one stretch of it, in blocks. Raises DataError."""
    numbers = np.array([atomic_numbers[symbol] for symbol in formula_symbols(path)])
    for each in database_spans(path, query) if span is None else [span]:
        values = {**_filters(path, query), **each._asdict(), "levels": _levels(query)}
        with closing(connect(path)) as connection:
            try:
                rows = connection.execute(_GEOMETRIES, values).fetchall()
                labels = connection.execute(_LABELS, values).fetchall() if query.labels else []
            except sqlite3.DatabaseError as error:
                raise _no_database(path, error) from None
        yield read_alike(source_label(path), rows, labels, numbers, query) or _read(path, rows, labels, numbers, query)


def _filters(path: Path, query: Query) -> dict[str, Any]:
    return {
        "names": json.dumps(list(query.names)) if query.names else None,
        "temperature": query.temperature,
        "ids": None if query.ids is None else json.dumps(_ids_in(path, query.ids)),
    }


def _levels(query: Query) -> str | None:
    return None if query.levels is None else json.dumps([int(level) for level in query.levels])


def _ids_in(path: Path, ids: Iterable[str]) -> list[int]:
    """The xyz ids of `path` among 'LABEL/xyz_id' ids; what is no number is nobody's id."""
    parts = [text.rpartition("/") for text in ids]
    return [int(number) for label, _, number in parts if label == source_label(path) and number.isdecimal()]


def _no_database(path: Path, error: sqlite3.DatabaseError) -> DataError:
    return DataError(f"{path} must be a PyKinML SQLite database (tables xyz and energy): {error}")


def _read(path: Path, rows: list[Any], labels: list[Any], numbers: np.ndarray, query: Query) -> Found:
    """The structures, one by one, so that an error names its row."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for xyz_id, *label in labels:
        groups[xyz_id].append(label)
    found = [
        _read_structure(path, row, groups[row[0]], numbers) for row in rows if row[0] in groups or not query.labels
    ]
    return Found(gathered(found, query), len(rows) - len(found))


def _read_structure(path: Path, row: Any, found: list[Any], numbers: np.ndarray) -> Row:
    row_id, geometry, name, temperature = row
    where = f"{path}, xyz row {row_id}"
    labels: dict[int, Label] = {}
    for level, value, force in found:
        if not isinstance(level, int):
            raise DataError(
                f"{where}: energy.fidelity must be a whole number, got {level!r}; correct or delete its row"
            )
        if level in labels:
            raise DataError(f"{where} must have one energy a fidelity level, got two at level {level}; delete one row")
        labels[level] = value, None if force is None else array_of_blob(force, f"{where}, force at level {level}")
    positions = array_of_blob(geometry, f"{where}, geom")
    if not isinstance(temperature, float | int | None):
        raise DataError(f"{where}: temp must be a number of K or NULL, got {temperature!r}; correct it")
    kelvin = np.nan if temperature is None else float(temperature)
    one = Row(f"{source_label(path)}/{row_id}", numbers, positions, name or "", kelvin, labels)
    return checked(one, where, ("geom", "E", "force"), "the formula is the file's name")
