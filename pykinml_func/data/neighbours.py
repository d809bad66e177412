"""Neighbour tables of batches, for AEVs in torch: all pairs of atoms where structures are small, near ones elsewhere.

# M structures of a batch, a atoms in all of them, S species, E neighbours of all atoms, R rows of the arrays
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from pykinml_func.potential.aev import neighbour_lists
from pykinml_func.types import NeighbourTables


class AllPairs:
    """Tables of any batch of some structures, from those of each sequence of species in them: no geometry is needed."""

    def __init__(self, sequences: Sequence[tuple[int, ...]], members: np.ndarray, n_species: int) -> None:
        """sequences: (k,) the species of each of `members` (k,), which are numbers of structures."""
        numbers = {sequence: number for number, sequence in enumerate(dict.fromkeys(sequences))}
        self._kind = np.full(members.max(initial=-1) + 1, -1)
        self._kind[members] = [numbers[sequence] for sequence in sequences]
        lists = [neighbour_lists(sequence, n_species) for sequence in numbers]
        flat = [[*singles, *(pair.reshape(len(pair), -1) for pair in pairs)] for singles, pairs in lists]
        self._n_singles = n_species
        self._widths = [max(table.shape[1] for table in tables) for tables in zip(*flat, strict=True)]
        self._local = [
            np.concatenate([_widen(table, width) for table, width in zip(tables, self._widths, strict=True)], axis=1)
            for tables in flat
        ]

    def of_batch(self, index: np.ndarray, slots: np.ndarray, n_slots: int, device: torch.device) -> NeighbourTables:
        """Tables over packed atoms; slots: (a,) the slot of each atom of the structures at `index`."""
        table = np.repeat(np.arange(n_slots)[:, None], sum(self._widths), axis=1)
        kinds = self._kind[index]
        sizes = np.array([len(local) for local in self._local])[kinds]
        starts = np.cumsum(sizes) - sizes
        for kind in np.unique(kinds):
            local = self._local[kind]
            atoms = slots[starts[kinds == kind][:, None] + np.arange(len(local))]
            table[atoms] = atoms[:, local]
        blocks = torch.from_numpy(table).to(device).split(self._widths, dim=1)
        pairs = tuple(block.reshape(n_slots, block.shape[1] // 2, 2) for block in blocks[self._n_singles :])
        return NeighbourTables(tuple(blocks[: self._n_singles]), pairs)


def _widen(table: np.ndarray, width: int) -> np.ndarray:
    """Columns up to `width`, each padded with the row's own number."""
    out = np.repeat(np.arange(len(table))[:, None], width, axis=1)
    out[:, : table.shape[1]] = table
    return out


def near_tables(
    structures: Sequence[np.ndarray],
    cutoffs: tuple[float, float],
    species: np.ndarray,
    slots: np.ndarray,
    shape: tuple[int, int],
    device: torch.device,
) -> NeighbourTables:
    """Tables over packed atoms that hold the neighbours within the cutoffs, so that they grow with the number of atoms.

    structures: (n,3) Å each, M of them; cutoffs: Å, radial and angular; species, slots: (a,) of their atoms; shape: of
    the slots, (S,N).
    """
    n_slots, n_species = shape[0] * shape[1], shape[0]
    centres, others = _near(structures, cutoffs[0])
    singles = [
        _table(slots[centres[kind]], slots[others[kind], None], n_slots)[..., 0]
        for kind in (species[others] == s for s in range(n_species))
    ]
    centres, first, second = _angles(*_near(structures, cutoffs[1]))
    low, high = np.sort([species[first], species[second]], axis=0)
    ends = np.stack([slots[first], slots[second]], axis=1)
    pairs = [
        _table(slots[centres[kind]], ends[kind], n_slots)
        for kind in ((low == s) & (high == t) for s, t in combinations_with_replacement(range(n_species), 2))
    ]
    return NeighbourTables(_tensors(singles, device), _tensors(pairs, device))


def _near(structures: Sequence[np.ndarray], cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs of atoms within the cutoff of each other, by their first atom: (E,) and (E,).

    Terms and their derivatives vanish at the cutoff, so that it does not matter on which side rounding puts an atom.
    """
    from scipy.spatial import cKDTree  # takes time to import, which few need

    found, start = [np.empty((0, 2), dtype=np.int64)], 0
    for positions in structures:
        pairs = cKDTree(positions).query_pairs(cutoff, output_type="ndarray") + start
        found += [pairs, pairs[:, ::-1]]
        start += len(positions)
    centres, others = np.concatenate(found).T
    order = np.lexsort((others, centres))
    return centres[order], others[order]


def _angles(centres: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The unordered pairs of each atom's neighbours: the atom, and both of them. centres: (E,), ascending."""
    last = np.searchsorted(centres, centres, side="right")
    following = last - np.arange(len(centres)) - 1  # neighbours of the same atom that come later
    first = np.repeat(np.arange(len(centres)), following)
    second = first + 1 + _places(following)
    return centres[first], others[first], others[second]


def _table(rows: np.ndarray, values: np.ndarray, n_rows: int) -> np.ndarray:
    """Values (E,C) side by side in their rows, each row padded with its own number: (R,K,C)."""
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=n_rows)
    width = counts.max(initial=0)
    out = np.broadcast_to(np.arange(n_rows)[:, None, None], (n_rows, width, values.shape[1])).copy()
    out[rows[order], _places(counts)] = values[order]
    return out


def _places(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... within each group of these sizes."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _tensors(tables: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(table).to(device) for table in tables)
