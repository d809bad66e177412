"""What was found in input files, counted, so that their structures need not be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pykinml_func.data.formats.blocks import Found
from pykinml_func.data.labels import has_forces
from pykinml_func.errors import DataError


class Tally(NamedTuple):
    """Numbers of structures."""

    n_structures: int = 0
    n_unlabelled: int = 0
    n_with_forces: int = 0
    """with forces at some level"""
    n_with_energies: tuple[int, ...] = ()
    """a level each"""
    note: str = ""


def tally(found: Found) -> Tally:
    """The numbers of one block."""
    structures = found.structures
    energies = tuple(np.isfinite(structures.energies).sum(axis=0).tolist())
    n_with_forces = int(has_forces(structures).any(axis=1).sum())
    return Tally(structures.n_structures, found.n_unlabelled, n_with_forces, energies, found.note)


def sum_tallies(tallies: Iterable[Tally]) -> Tally:
    """The numbers of several blocks."""
    total = Tally()
    for one in tallies:
        pairs = zip_longest(total.n_with_energies, one.n_with_energies, fillvalue=0)
        total = Tally(
            total.n_structures + one.n_structures,
            total.n_unlabelled + one.n_unlabelled,
            total.n_with_forces + one.n_with_forces,
            tuple(a + b for a, b in pairs),
            total.note or one.note,
        )
    return total


def check_levels(
    levels: Sequence[int], tallies: Iterable[Tally], holds: Callable[[Path], str], paths: Sequence[Path]
) -> None:
    """Raises DataError for a level at which no structure has an energy. holds: what a file has, for the message."""
    numbers = sum_tallies(tallies).n_with_energies
    empty, there = (
        ", ".join(str(level) for level, number in zip(levels, numbers, strict=True) if bool(number) == found)
        for found in (False, True)
    )
    if empty:
        raise DataError(
            f"every level of fidelity and low_fidelity must have energies, got none at level {empty} and some at "
            f"{there}; the files hold {'; '.join(map(holds, paths))}"
        )


def source_line(path: Path, title: str, units: tuple[str, str], found: Tally) -> str:
    """What a file is and gave: 'ani.h5: ANI HDF5, 120 structures, energies Hartree -> eV, no forces'."""
    energies, forces = units
    forces = forces if found.n_with_forces else "no forces"
    some = f" ({found.n_with_forces} have them)" if 0 < found.n_with_forces < found.n_structures else ""
    left_out = f", {found.n_unlabelled} without energies left out" if found.n_unlabelled else ""
    note = f", {found.note}" if found.note else ""
    return f"{path.name}: {title}, {found.n_structures} structures, {energies}, {forces}{some}{left_out}{note}"
