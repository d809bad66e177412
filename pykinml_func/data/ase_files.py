"""Structures of the formats that ASE reads, its databases included, with labels in eV and eV/Å.

A calculator's energy and forces belong to the main fidelity level; those of further levels are `energy_0`, `forces_0`
and so on, in `Atoms.info` and `Atoms.arrays`, or a database's key-value pairs and data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from pykinml_func.data.rows import Found, Query, Row, checked_numbers, found_labels, select, some, source_label
from pykinml_func.errors import DataError

SOURCE = "pykinml_source"
"""The key of `Atoms.info` that remembers where a structure was read."""

SQLITE_MAGIC = b"SQLite format 3\0"


class _Frame(NamedTuple):
    number: int
    atoms: Atoms
    values: dict[str, Any]
    """what is said of it, a calculator's results aside"""


def read_ase(path: Path, query: Query) -> Found:
    """The molecules of one file. Raises DataError for a file that ASE cannot read, or that has periodic structures."""
    frames = _frames(path)
    sources = {level: _sources(frames, level, query.main) for level in query.levels or ()} if query.labels else {}
    return select((_row(path, frame, sources) for frame in frames), query)


def ase_contents(path: Path, query: Query) -> str:
    """What a file holds, for an error message."""
    frames = _frames(path)
    keys = sorted({key for frame in frames for key in (*frame.values, *_results(frame.atoms))} - {SOURCE})
    expected = [f"energy_{level}" for level in query.levels or ()] + ["a calculator's energy"]
    return (
        f"{path.name}: {len(frames)} structures with {some(keys, 20) or 'nothing beside their atoms'}; their energies "
        f"are looked for in {' or '.join(expected)}"
    )


def read_images(path: Path) -> list[Atoms]:
    """Every structure as ASE reads it, with its place in `Atoms.info`. Raises DataError."""
    import ase.io  # loads parts of SciPy too, in half a second, which a run from databases need not wait for

    try:
        images = list(ase.io.iread(path, index=":", do_not_split_by_at_sign=True))
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise _unreadable(path, error) from error
    if not images:
        raise DataError(f"{path} must hold at least one structure, got none")
    for index, atoms in enumerate(images):
        atoms.info[SOURCE] = f"{path}@{index}"
    return images


def _frames(path: Path) -> list[_Frame]:
    with path.open("rb") as file:
        sqlite = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    if not sqlite and path.suffix != ".json":
        images = read_images(path)
        return [_Frame(k, atoms, {**atoms.arrays, **atoms.info}) for k, atoms in enumerate(images, start=1)]
    import ase.db  # loads ase.io

    try:
        database = ase.db.connect(path, type="db" if sqlite else "json", serial=True)
        return [_Frame(row.id, row.toatoms(), {**row.data, **row.key_value_pairs}) for row in database.select()]
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


def _sources(frames: list[_Frame], level: int, main: int | None) -> tuple[str, str, bool]:
    """The keys of a level's energy and forces, and whether a calculator's: the main level's are, if none names it."""
    energy, forces = f"energy_{level}", f"forces_{level}"
    if level == main and not any(energy in frame.values for frame in frames):
        return "energy", "forces", True
    return energy, forces, False
