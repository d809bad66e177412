"""One structure of a file: which are wanted, and what they must be.

# n atoms of one structure
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from pykinml_func.data.geometry import CLOSEST, closest_pair
from pykinml_func.errors import DataError

Label = tuple[float, np.ndarray | None]
"""Energy (eV), and forces (n,3) eV/Å where there are any."""


class Row(NamedTuple):
    """One structure of a file."""

    id: str
    numbers: np.ndarray
    positions: np.ndarray
    name: str
    temperature: float
    labels: dict[int, Label]
    """by fidelity level"""


class Query(NamedTuple):
    """Which structures, and which labels of them, are wanted."""

    levels: Sequence[int] | None = None
    """None: any that there are. Labels of a file that names no level belong to the last of them."""
    names: Sequence[str] = ()
    temperature: float | None = None
    ids: Collection[str] | None = None
    labels: bool = True
    """False: geometries alone, those without energies too"""

    @property
    def main(self) -> int | None:
        """The level of labels without one; None where no labels are wanted."""
        return self.levels[-1] if self.labels and self.levels else None

    def admits(self, row: Row) -> bool:
        """Whether id, name (as SQL's LIKE) and temperature pass the filters."""
        return (
            (self.ids is None or row.id in self.ids)
            and (self.temperature is None or row.temperature == self.temperature)
            and (not self.names or any(_like(pattern).fullmatch(row.name) for pattern in self.names))
        )


def source_label(path: Path) -> str:
    """What structure ids begin with: 'C5H5' for C5H5.db. Without blanks, which end an id in split files."""
    return "_".join(path.stem.split())


def checked(row: Row, where: str, fields: Sequence[str] = ("positions", "energy", "forces"), why: str = "") -> Row:
    """The row with arrays of float64. Raises DataError for one that is no molecule, or has labels that are no numbers.

    where: file and row; fields: what the file calls positions, energy and forces; why: where the number of atoms
    comes from.
    """
    if len(row.numbers) == 0:
        raise DataError(f"{where} must have at least one atom, got none; delete it")
    geometry, energy, force = fields
    positions = _checked_array(row.positions, f"{where}, {geometry}", len(row.numbers), why)
    pair = closest_pair(positions)
    if pair is not None:
        raise DataError(
            f"{where}, {geometry} must have its atoms at least {CLOSEST:g} Å apart, got atoms {pair[0]} and {pair[1]} "
            "in one place; delete the row"
        )
    labels: dict[int, Label] = {}
    for level, (value, forces) in row.labels.items():
        if not isinstance(value, float | int | np.floating | np.integer) or not np.isfinite(value):
            raise DataError(f"{where}, {energy} at level {level} must be a finite number of eV, got {value!r}")
        name = f"{where}, {force} at level {level}"
        labels[level] = value, None if forces is None else _checked_array(forces, name, len(row.numbers), why)
    return row._replace(positions=positions, labels=labels)


def _checked_array(value: Any, where: str, n_atoms: int, why: str) -> np.ndarray:
    array = np.asarray(value)
    expected = f"{where} must be {n_atoms} x 3 finite numbers ({why or 'a row an atom'})"
    if array.shape != (n_atoms, 3) or array.dtype.kind not in "fiu":
        raise DataError(f"{expected}, got {array.dtype} of shape {array.shape}")
    wrong = np.argwhere(~np.isfinite(array))
    if wrong.size:
        atom, axis = wrong[0]
        raise DataError(f"{expected}, got {array[atom, axis]} for {'xyz'[axis]} of atom {atom}; correct or delete it")
    return array.astype(np.float64)


def found_labels(values: Mapping[int, tuple[Any, Any]]) -> dict[int, Label]:
    """Labels by level from energy and forces as a file holds them; None or NaN is a label that is missing."""
    return {
        level: (energy, None if _is_missing(forces) else forces)
        for level, (energy, forces) in values.items()
        if not _is_missing(energy)
    }


def _is_missing(value: Any) -> bool:
    if value is None:
        return True
    array = np.asarray(value)
    return array.dtype.kind == "f" and bool(np.isnan(array).all())


def numbers_of(symbols: Iterable[str], where: str) -> np.ndarray:
    """(n,) atomic numbers. Raises DataError for what is no symbol; where: what to call the structure."""
    try:
        numbers = np.array([atomic_numbers[symbol] for symbol in symbols], dtype=int)
    except KeyError as error:
        raise DataError(f"{where} must have chemical symbols for atoms, got {error.args[0]!r}; correct it") from None
    return checked_numbers(numbers, where)


def checked_numbers(numbers: np.ndarray, where: str) -> np.ndarray:
    """The same atomic numbers (n,). Raises DataError where one is no element's; where: what to call the structure."""
    wrong = numbers[(numbers < 1) | (numbers >= len(chemical_symbols))]
    if wrong.size:
        raise DataError(f"{where} must have atomic numbers of 1 or more, got {wrong[0]}; correct it")
    return numbers


def some(items: Sequence[object], most: int = 5) -> str:
    """The first of the items, for a message."""
    return ", ".join(str(item) for item in items[:most]) + (", ..." if len(items) > most else "")


def _like(pattern: str) -> re.Pattern[str]:
    """SQL's LIKE: % is any text, _ any character, and the case of Latin letters is of no account."""
    text = "".join({"%": ".*", "_": "."}.get(character, re.escape(character)) for character in pattern)
    return re.compile(text, re.IGNORECASE | re.ASCII | re.DOTALL)
