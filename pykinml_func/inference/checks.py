"""What a structure must be before a model may judge it.

# n atoms of one structure
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from pykinml_func.data.ase_files import SOURCE
from pykinml_func.data.geometry import CLOSEST, closest_pair
from pykinml_func.errors import DataError, ModelError


def structure_label(position: int, atoms: Atoms) -> str:
    """What error messages call the structure at this place of a list: its file where it was read from one."""
    return f"{atoms.info.get(SOURCE, f'images[{position}]')} ({atoms.get_chemical_formula()})"


def checked_species(elements: Sequence[str], atoms: Atoms, label: str) -> np.ndarray:
    """Indices (n,) into `elements` of the atoms of a structure that a model of these elements can predict.

    label: what error messages call the structure. Raises ModelError for a periodic structure or an atom of
    another element, DataError for a structure without atoms, positions that are not finite, or two atoms in one place.
    """
    if atoms.pbc.any() and atoms.cell.any():
        raise ModelError(
            f"{label} must be a molecule in the gas phase, which is what the model describes, got a periodic cell; "
            "remove it if it only holds the molecule: atoms.pbc = False"
        )
    _check_positions(atoms.positions, label)
    index = {atomic_numbers[symbol]: k for k, symbol in enumerate(elements)}
    try:
        return np.array([index[number] for number in atoms.numbers.tolist()])
    except KeyError as error:
        raise ModelError(
            f"{label} must be of the model's elements, {', '.join(elements)}, got {chemical_symbols[error.args[0]]}; "
            "leave it out, or use a model trained to that element"
        ) from None


def _check_positions(positions: np.ndarray, label: str) -> None:
    """positions: (n,3) Å."""
    if len(positions) == 0:
        raise DataError(f"{label} must have at least one atom, got none")
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise DataError(f"{label} must have finite positions, got {positions[atom].tolist()} for atom {atom}")
    pair = closest_pair(positions)
    if pair is not None:
        raise DataError(
            f"{label} must have its atoms at least {CLOSEST:g} Å apart, got atoms {pair[0]} and {pair[1]} in one "
            "place; remove one of them"
        )
