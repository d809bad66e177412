"""What a structure must be before a model may judge it.

# A atoms of many structures, n atoms of one
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from pykinml_func.data.formats.ase_files import SOURCE
from pykinml_func.data.geometry import CLOSEST, closest_pair, squared_distances
from pykinml_func.errors import DataError, ModelError

_MOST_PAIRS = 2**17
"""Pairs of atoms looked at together: some megabytes."""


def structure_label(atoms: Atoms, place: int | None = None) -> str:
    """What error messages call a structure: its file where it was read from one, or its place in a list."""
    name = "the structure" if place is None else f"images[{place}]"
    return f"{atoms.info.get(SOURCE, name)} ({atoms.get_chemical_formula()})"


def checked_species(elements: Sequence[str], atoms: Atoms, place: int | None = None) -> np.ndarray:
    """Indices (n,) into `elements` of the atoms of a structure that a model of these elements can predict.

    place: of the structure in a list, for error messages. Raises ModelError for a periodic structure or an atom of
    another element, DataError for a structure without atoms, positions that are not finite, or two atoms in one place.
    """
    if atoms.pbc.any() and atoms.cell.any():
        raise ModelError(
            f"{structure_label(atoms, place)} must be a molecule in the gas phase, which is what the model describes, "
            "got a periodic cell; remove it if it only holds the molecule: atoms.pbc = False"
        )
    _check_positions(atoms, place)
    species = _indices(tuple(elements))[atoms.numbers]
    if species.min() < 0:
        unknown = chemical_symbols[atoms.numbers[species.argmin()]]
        raise ModelError(
            f"{structure_label(atoms, place)} must be of the model's elements, {', '.join(elements)}, got {unknown}; "
            "leave it out, or use a model trained to that element"
        )
    return species


def checked_species_of_all(elements: Sequence[str], images: Sequence[Atoms]) -> np.ndarray:
    """As `checked_species`, of many structures end to end: (A,)."""
    species = _indices(tuple(elements))[np.concatenate([atoms.numbers for atoms in images])]
    if _all_sound(images) and species.min(initial=0) >= 0:
        return species
    return np.concatenate([checked_species(elements, atoms, place) for place, atoms in enumerate(images)])


@lru_cache
def _indices(elements: tuple[str, ...]) -> np.ndarray:
    """(atomic numbers,): the index of each element, -1 for one that is not of the model's."""
    indices = np.full(len(chemical_symbols), -1)
    indices[[atomic_numbers[symbol] for symbol in elements]] = range(len(elements))
    return indices


def _all_sound(images: Sequence[Atoms]) -> bool:
    """Whether no structure is periodic, and all have atoms, finite positions and no two atoms in one place."""
    if any(len(atoms) == 0 or (atoms.pbc.any() and atoms.cell.any()) for atoms in images):
        return False
    by_size: dict[int, list[np.ndarray]] = defaultdict(list)
    for atoms in images:
        by_size[len(atoms)].append(atoms.positions)
    return all(_are_sound(np.stack(group)) for group in by_size.values())


def _are_sound(positions: np.ndarray) -> bool:
    """positions: (G,n,3) Å."""
    if not np.isfinite(positions).all():
        return False
    step = _MOST_PAIRS // positions.shape[1] ** 2
    if step < 2:
        return all(closest_pair(each) is None for each in positions)
    chunks = (positions[start : start + step] for start in range(0, len(positions), step))
    return all(squared_distances(chunk).min() >= CLOSEST**2 for chunk in chunks)


def _check_positions(atoms: Atoms, place: int | None) -> None:
    positions = atoms.positions
    if len(positions) == 0:
        raise DataError(f"{structure_label(atoms, place)} must have at least one atom, got none")
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise DataError(
            f"{structure_label(atoms, place)} must have finite positions, got {positions[atom].tolist()} for atom "
            f"{atom}"
        )
    pair = closest_pair(positions)
    if pair is not None:
        raise DataError(
            f"{structure_label(atoms, place)} must have its atoms at least {CLOSEST:g} Å apart, got atoms {pair[0]} "
            f"and {pair[1]} in one place; remove one of them"
        )
