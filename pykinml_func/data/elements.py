"""Elements, species indices and compositions.

# M structures, A atoms in all of them, S species
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from ase.formula import Formula

from pykinml_func.errors import ElementError
from pykinml_func.types import Structures


def ordered_elements(symbols: Iterable[str]) -> tuple[str, ...]:
    """Each symbol once: C first, the rest by alphabet, so that C, H keep PyKinML's order."""
    return tuple(sorted(set(symbols), key=lambda symbol: (symbol != "C", symbol)))


def species_of(elements: Sequence[str], structures: Structures) -> np.ndarray:
    """(A,) indices into `elements`. Raises ElementError for an atom of another element."""
    table = np.full(len(chemical_symbols), -1)
    table[[atomic_numbers[symbol] for symbol in elements]] = np.arange(len(elements))
    species = table[structures.numbers]
    if (species < 0).any():
        m = int(np.searchsorted(structures.offsets, np.flatnonzero(species < 0)[0], side="right")) - 1
        other = sorted({chemical_symbols[number] for number in structures.numbers[species < 0]})
        raise ElementError(
            f"atoms must be of the elements {', '.join(elements)}, got {', '.join(other)} (first in "
            f"{structures.ids[m]}); add them to elements, or leave these structures out"
        )
    return species


def composition(species: np.ndarray, offsets: np.ndarray, n_species: int) -> np.ndarray:
    """(M,S) atoms of each element in each structure. species: (A,); offsets: (M+1,)."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    counts = np.zeros((len(offsets) - 1, n_species), dtype=np.int64)
    np.add.at(counts, (owner, species), 1)
    return counts


def formula_of_each(structures: Structures) -> np.ndarray:
    """(M,) Hill formulas."""
    return np.array(list(_each_formula(structures)))


def formulas(structures: Structures) -> dict[str, int]:
    """Hill formula -> number of structures."""
    return dict(Counter(_each_formula(structures)))


def _each_formula(structures: Structures) -> Iterator[str]:
    known: dict[bytes, str] = {}
    for start, end in zip(structures.offsets[:-1], structures.offsets[1:], strict=True):
        numbers = structures.numbers[start:end]
        sequence = numbers.tobytes()
        if sequence not in known:
            known[sequence] = Formula.from_list([chemical_symbols[number] for number in numbers]).format("hill")
        yield known[sequence]
