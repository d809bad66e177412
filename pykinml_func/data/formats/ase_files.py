"""Structures of the formats that ASE reads, its databases included, with labels in eV and eV/Å.

A calculator's energy and forces belong to the main fidelity level; those of further levels are `energy_0`, `forces_0`
and so on, in `Atoms.info` and `Atoms.arrays`, or a database's key-value pairs and data.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from pykinml_func.data.formats.blocks import Found, select
from pykinml_func.data.formats.rows import Query, Row, checked_numbers, found_labels, some, source_label
from pykinml_func.errors import DataError

SOURCE = "pykinml_source"
"""The key of `Atoms.info` that remembers where a structure was read."""

SQLITE_MAGIC = b"SQLite format 3\0"

_FEW = 1000
"""Structures of a file that are kept in memory."""


class _Frame(NamedTuple):
    number: int
    atoms: Atoms
    values: dict[str, Any]
    """what is said of it, a calculator's results aside"""


def read_ase(path: Path, query: Query) -> Iterator[Found]:
    """The molecules of one file, in blocks. Raises DataError for a file that ASE cannot read, or that has periodic
    structures.

    Whether a calculator's energy is the main level's shows when no structure names that level: a long file is gone
    through for that first, as text where it can be.
    """
    frames = _frames(path)
    first = list(islice(frames, _FEW))
    names = {level: (f"energy_{level}", f"forces_{level}", False) for level in query.levels or ()}
    sources = names if query.labels else {}
    if query.labels and query.main is not None:
        named = names[query.main][0]
        found = any(named in frame.values for frame in first)
        if not found and len(first) == _FEW and _may_hold(path, named):
            found = any(named in frame.values for frame in frames)
            frames = islice(_frames(path), _FEW, None)
        sources |= {} if found else {query.main: ("energy", "forces", True)}
    yield from select((_row(path, frame, sources) for frame in chain(first, frames)), query)


def _may_hold(path: Path, word: str) -> bool:
    """Whether a key can be in a file; False where it is text without it."""
    if path.suffix not in {".xyz", ".extxyz"}:
        return True
    with path.open("rb") as file:
        return any(word.encode() in line for line in file)


def ase_contents(path: Path, query: Query) -> str:
    """What a file holds, for an error message."""
    keys, number = {SOURCE}, 0
    for number, frame in enumerate(_frames(path), start=1):  # noqa: B007 (the last is their number)
        keys.update(frame.values, _results(frame.atoms))
    expected = [f"energy_{level}" for level in query.levels or ()] + ["a calculator's energy"]
    return (
        f"{path.name}: {number} structures with {some(sorted(keys - {SOURCE}), 20) or 'nothing beside their atoms'}; "
        f"their energies are looked for in {' or '.join(expected)}"
    )


def read_images(path: Path) -> Iterator[Atoms]:
    """Every structure as ASE reads it, with its place in `Atoms.info`. Raises DataError."""
    import ase.io  # loads parts of SciPy too, in half a second, which a run from databases need not wait for

    index = -1
    try:
        for index, atoms in enumerate(ase.io.iread(path, index=":", do_not_split_by_at_sign=True)):
            atoms.info[SOURCE] = f"{path}@{index}"
            yield atoms
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise _unreadable(path, error) from error
    if index < 0:
        raise DataError(f"{path} must hold at least one structure, got none")


def _frames(path: Path) -> Iterator[_Frame]:
    with path.open("rb") as file:
        sqlite = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    if not sqlite and path.suffix != ".json":
        for k, atoms in enumerate(read_images(path), start=1):
            yield _Frame(k, atoms, {**atoms.arrays, **atoms.info})
        return
    import ase.db  # loads ase.io

    try:
        database = ase.db.connect(path, type="db" if sqlite else "json", serial=True)
        for row in database.select():
            yield _Frame(row.id, row.toatoms(), {**row.data, **row.key_value_pairs})
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} must be in a format that ASE reads (`ase info --formats` lists them, with their suffixes), or a "
        f"PyKinML database, or HDF5 of PyKinML or ANI; {type(error).__name__}: {error}"
    )


def _row(path: Path, frame: _Frame, sources: dict[int, tuple[str, str, bool]]) -> tuple[str, Row]:
    where, atoms, values = f"{path}, structure {frame.number}", frame.atoms, frame.values
    if atoms.pbc.any() and atoms.cell.any():
        raise DataError(
            f"{where} must be a molecule in the gas phase, got a periodic cell; remove it if it only holds the "
            "molecule: atoms.pbc = False"
        )
    temperature = values.get("temperature", np.nan)
    if not isinstance(temperature, float | int | np.floating | np.integer):
        raise DataError(f"{where}: temperature must be a number of K, got {temperature!r}; correct it")
    results = _results(atoms)
    labels = {
        level: ((results if plain else values).get(energy), (results if plain else values).get(forces))
        for level, (energy, forces, plain) in sources.items()
    }
    row = Row(
        f"{source_label(path)}/{frame.number}",
        checked_numbers(atoms.numbers, where),
        atoms.positions,
        str(values.get("name", "")),
        float(temperature),
        found_labels(labels),
    )
    return where, row


def _results(atoms: Atoms) -> dict[str, Any]:
    return {} if atoms.calc is None else atoms.calc.results
