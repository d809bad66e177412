"""One front for the inputs of all formats: what a file is shows in its content."""

from __future__ import annotations

import glob
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from pykinml_func.data.formats.ani import ani_contents, ani_count, is_ani, read_ani
from pykinml_func.data.formats.ase_files import SOURCE, SQLITE_MAGIC, ase_contents, read_ase, read_images
from pykinml_func.data.formats.blocks import Found, collect
from pykinml_func.data.formats.database import database_contents
from pykinml_func.data.formats.database_reader import read_database
from pykinml_func.data.formats.hdf5 import hdf5_contents, hdf5_count, is_hdf5, open_hdf5, pykinml_kind, read_hdf5
from pykinml_func.data.formats.rows import Query, source_label
from pykinml_func.data.preparing.tally import Tally, check_levels, source_line, sum_tallies, tally
from pykinml_func.errors import DataError
from pykinml_func.types import Structures


def _uncounted(_path: Path, _query: Query) -> int:
    return 0


class Format(NamedTuple):
    """A kind of input file."""

    title: str
    read: Callable[..., Iterator[Found]]
    """(path, query) -> its structures, in blocks"""
    contents: Callable[[Path, Query], str]
    """what a file holds, for an error message"""
    counted: Callable[[Path, Query], int] = _uncounted
    """how many structures a file has, where that is soon told"""
    energies: str = "energies eV"
    forces: str = "forces eV/Å"


FORMATS = {
    "sqlite": Format("PyKinML database", read_database, database_contents),
    "aev": Format("PyKinML HDF5 of AEVs", read_hdf5, hdf5_contents, hdf5_count),
    "pca": Format("PyKinML HDF5 of projected AEVs", read_hdf5, hdf5_contents, hdf5_count),
    "ani": Format("ANI HDF5", read_ani, ani_contents, ani_count, "energies Hartree -> eV", "forces Hartree/Å -> eV/Å"),
    "ase": Format("read by ASE", read_ase, ase_contents),
}


def find_inputs(patterns: Sequence[str]) -> list[Path]:
    """The files that paths or globs name, each once, in order of name. Raises DataError for one that names none."""
    found: dict[Path, Path] = {}
    for pattern in patterns:
        names = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)  # noqa: PTH207 (absolute patterns)
        matches = [Path(name) for name in sorted(names)]
        if not matches:
            raise DataError(
                f"no file matches {pattern!r} (from {Path.cwd()}); give a path or a glob such as 'data/*.db'"
            )
        for path in matches:
            if path.is_dir():
                raise DataError(f"input must be files, got {path}, which is a folder; give '{path}/*.db'")
            found.setdefault(path.resolve(), path)
    if not found:
        raise DataError("input must name at least one file, got none; e.g. --input 'data/*.db'")
    paths = sorted(found.values(), key=lambda path: (path.name, str(path)))
    _check_labels(paths)
    return paths


def _check_labels(paths: Sequence[Path]) -> None:
    by_label: dict[str, Path] = {}
    for path in paths:
        other = by_label.setdefault(source_label(path), path)
        if other != path:
            raise DataError(
                f"input files must differ in their names before the suffix, with which structure ids begin, got "
                f"{other} and {path}; rename one (a database's formula ends at the first dot, so "
                f"{path.stem}.second{path.suffix} will do)"
            )


def input_format(path: Path, input_type: str = "auto") -> str:
    """'sqlite', 'aev', 'pca', 'ani' or 'ase'. Raises DataError where the content is of no format or not the one given.

    input_type: what it must be; auto: any.
    """
    found = _sniff(path)
    if input_type not in {"auto", found}:
        raise DataError(
            f"{path} must be {input_type} ({FORMATS[input_type].title}), as input_type says, got {found} "
            f"({FORMATS[found].title}); leave input_type at auto, which goes by each file's content"
        )
    return found


def _sniff(path: Path) -> str:
    """The format of a file by its content; what ASE can read shows when it tries."""
    try:
        with path.open("rb") as file:
            start = file.read(len(SQLITE_MAGIC))
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from None
    if not start:
        raise DataError(f"{path} must hold at least one structure, got an empty file")
    if start == SQLITE_MAGIC:
        return "sqlite" if {"xyz", "energy"} <= _tables(path) else "ase"
    return _sniff_hdf5(path) if is_hdf5(path) else "ase"


def _tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.DatabaseError:
            return set()


def _sniff_hdf5(path: Path) -> str:
    with open_hdf5(path) as file:
        found = pykinml_kind(file) or ("ani" if is_ani(file) else None)
        groups = list(file)
    if found is None:
        raise DataError(
            f"{path} must be HDF5 of PyKinML (a group Base_Group) or of ANI (groups with species and coordinates), got "
            f"{', '.join(groups[:5]) or 'nothing in it'}; give one of these, or a format that ASE reads"
        )
    return found


def read_inputs(
    paths: Sequence[Path],
    levels: Sequence[int],
    names: Sequence[str] = (),
    temperature: float | None = None,
    ids: Sequence[str] | None = None,
    *,
    input_type: str = "auto",
) -> tuple[Structures, tuple[str, ...]]:
    """Structures that have an energy at one of `levels`, in the order of files, and a line on each file; in memory.

    levels: labels of a file that names no level belong to the last of them; names: SQL LIKE patterns, of which one
    must match; temperature: K; ids: 'LABEL/row', each of which must be there. Nothing is ever unpickled. Raises
    DataError for a file, a row or an id that cannot be used, and for a level at which no structure has an energy.
    """
    query = Query(levels, names, temperature, None if ids is None else set(ids))
    formats = {path: input_format(path, input_type) for path in paths}
    found = {path: list(FORMATS[form].read(path, query)) for path, form in formats.items()}
    holds = contents(formats, query)
    structures = collect(chain.from_iterable(found.values()), query, paths, holds)
    tallies = {path: sum_tallies(tally(one) for one in blocks) for path, blocks in found.items()}
    check_levels(sorted(set(levels)), tallies.values(), holds, paths)
    return structures, source_lines(formats, tallies)


def source_lines(formats: Mapping[Path, str], tallies: Mapping[Path, Tally]) -> tuple[str, ...]:
    """A line on each file."""
    lines = []
    for path, found in tallies.items():
        form = FORMATS[formats[path]]
        lines.append(source_line(path, form.title, (form.energies, form.forces), found))
    return tuple(lines)


def contents(formats: Mapping[Path, str], query: Query) -> Callable[[Path], str]:
    """What says of each of these files what it holds, for an error message."""
    return lambda path: FORMATS[formats[path]].contents(path, query)


def read_structures(paths: Iterable[str | Path], level: int | None = None) -> list[Atoms]:
    """Every structure of files of any format, in their order.

    level: only the structures that have an energy at this fidelity level, each with an ASE calculator that holds
    energy and forces, and with its id in `info`. Raises DataError for a file that is not there, is empty, or cannot be
    read.
    """
    return [atoms for path in paths for atoms in _read_atoms(Path(path), level)]


def _read_atoms(path: Path, level: int | None) -> list[Atoms]:
    if not path.exists():
        raise DataError(f"no structure file {path} (from {Path.cwd()}); give a file that ASE reads or a PyKinML .db")
    if level is not None:
        return _as_atoms(path, read_inputs([path], [level])[0])
    form = input_format(path) if path.is_file() else "ase"
    if form == "ase":
        return list(read_images(path))
    query, reader = Query(labels=False), FORMATS[form]
    found = reader.read(path, query)
    return _as_atoms(path, collect(found, query, [path], lambda path: reader.contents(path, query)))


def _as_atoms(path: Path, structures: Structures) -> list[Atoms]:
    """Structures of a file; their calculators have the labels of the one level that there is, if any."""
    images = []
    for m, (a, b) in enumerate(zip(structures.offsets[:-1], structures.offsets[1:], strict=True)):
        name = str(structures.ids[m])
        atoms = Atoms(structures.numbers[a:b], structures.positions[a:b], info={SOURCE: f"{path}, {name}", "id": name})
        if structures.levels.size:
            forces = structures.forces[a:b, 0]
            known = {"forces": forces} if np.isfinite(forces).all() else {}
            atoms.calc = SinglePointCalculator(atoms, energy=float(structures.energies[m, 0]), **known)
        images.append(atoms)
    return images
