"""Batches of few shapes: atoms packed by species into (S,N) slots, the rest of which is padding.

M is fixed and N is one of three widths at most, so that a compiled step meets as few shapes where sizes are mixed.

# M structures of a batch, L fidelity levels, A atoms of all structures, S species, N atoms a species (padded), n atoms
# of the largest structure, D AEV length
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pykinml_func.data.elements import composition
from pykinml_func.data.featurize import jacobian_offsets
from pykinml_func.potential.aev import neighbour_lists
from pykinml_func.potential.features import CachedAEVs, CachedJacobians, Geometry
from pykinml_func.types import Batch, Features, NeighbourTables, atom_rows

_SAMPLED_BATCHES = 256


class Source(NamedTuple):
    """The arrays that batches are cut from. Which of aevs and jacobians are there decides the features of a batch."""

    species: np.ndarray
    """(A,) indices into the elements"""
    positions: np.ndarray
    """(A,3) Å"""
    offsets: np.ndarray
    """(M+1,)"""
    n_species: int
    energies: np.ndarray
    """(M,L) eV, self energies subtracted; NaN where there is no label"""
    forces: np.ndarray | None = None
    """(A,L,3) eV/Å; NaN where there is no label"""
    aevs: np.ndarray | None = None
    """(A,D)"""
    jacobians: np.ndarray | None = None
    """flat; see `featurize.jacobian_offsets`"""


class Packer:
    """Cuts batches of at most `batch_size` structures out of `members` of a source, all with the same padding rules."""

    def __init__(
        self, source: Source, members: np.ndarray, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """members: (k,) indices of the structures that batches may hold."""
        self.source, self.members, self.dtype, self.device = source, members, dtype, device
        self.batch_size = max(1, min(batch_size, len(members)))
        self._sizes = np.diff(source.offsets)
        self.largest = int(self._sizes[members].max(initial=1))
        self._widths = self._ladder()

    @cached_property
    def _tables(self) -> _Tables:
        return _Tables(self.source, self.members)

    @cached_property
    def _unit_offsets(self) -> np.ndarray:
        """(M+1,): where Jacobians begin in `Source.jacobians`, for D = 1."""
        return jacobian_offsets(self._sizes, 1)

    def batches(self, order: np.ndarray) -> Iterator[Batch]:
        """The structures at `order`, cut into consecutive batches; the last is padded to the size of the others."""
        return (self.pack(index) for index in self.cut(order))

    def cut(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """The indices of each of these batches."""
        return (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))

    def pack(self, index: np.ndarray) -> Batch:
        """One batch of the structures at `index`."""
        source, sizes = self.source, self._sizes[index]
        rows = atom_rows(source.offsets, index)
        owner = np.repeat(np.arange(len(index)), sizes)
        slots, width = self._slots(source.species[rows])
        structure_index = np.full(source.n_species * width, self.batch_size)
        structure_index[slots] = owner
        energies = np.full((self.batch_size, source.energies.shape[1]), np.nan)
        energies[: len(index)] = source.energies[index]
        labelled = np.isfinite(energies)
        shape = (source.n_species, width)
        forces = weights = None
        if source.forces is not None:
            found = source.forces[rows]
            there = np.isfinite(found).all(axis=2)
            forces = self._spread(np.where(there[..., None], found, 0.0), slots, shape)
            weights = self._spread(there / (3 * sizes[owner, None]), slots, shape)
        return Batch(
            self._features(index, rows, owner, slots, shape),
            self._index(structure_index.reshape(shape)),
            self._tensor(np.where(labelled, energies, 0.0)),
            self._tensor(labelled),
            forces,
            weights,
        )

    def unpack(self, index: np.ndarray, per_atom: Tensor) -> np.ndarray:
        """The rows of `per_atom` (S,N,...) of the atoms of the structures at `index`, in the source's order of atoms.

        per_atom: what was computed from `pack(index)`.
        """
        slots, _ = self._slots(self.source.species[atom_rows(self.source.offsets, index)])
        found: np.ndarray = per_atom.flatten(0, 1).cpu().numpy()[slots]
        return found

    def _ladder(self) -> np.ndarray:
        """The widths N that batches take: what most random batches need, what nearly all do, and what any can need."""
        rows = atom_rows(self.source.offsets, self.members)
        offsets = np.concatenate([[0], np.cumsum(self._sizes[self.members])])
        counts = composition(self.source.species[rows], offsets, self.source.n_species)
        most = np.sort(counts, axis=0)[-self.batch_size :].sum(axis=0).max(initial=1)
        if len(counts) <= self.batch_size:  # one batch holds them all
            return np.array([most])
        drawn = np.random.default_rng(0).integers(len(counts), size=(_SAMPLED_BATCHES, self.batch_size))
        needed = counts[drawn].sum(axis=1).max(axis=1)
        return np.unique(np.minimum([np.quantile(needed, 0.9).astype(int), needed.max(), most], most).clip(1))

    def _slots(self, species: np.ndarray) -> tuple[np.ndarray, int]:
        """The slot of each atom (a,) in the flattened (S,N), and N."""
        counts = np.bincount(species, minlength=self.source.n_species)
        width = int(self._widths[np.searchsorted(self._widths, counts.max())])
        order = np.argsort(species, kind="stable")
        starts = np.cumsum(counts) - counts
        slots = np.empty_like(order)
        slots[order] = np.arange(len(species)) + (np.arange(self.source.n_species) * width - starts)[species[order]]
        return slots, width

    def _features(
        self, index: np.ndarray, rows: np.ndarray, owner: np.ndarray, slots: np.ndarray, shape: tuple[int, int]
    ) -> Features:
        source = self.source
        if source.aevs is None:
            # centred, so that float32 keeps its digits for distances
            sizes = self._sizes[index]
            centres = np.add.reduceat(source.positions[rows], np.cumsum(sizes) - sizes) / sizes[:, None]
            positions = self._spread(source.positions[rows] - centres[owner], slots, shape)
            return Geometry(positions, self._tables.of_batch(index, slots, shape[0] * shape[1], self.device))
        packed = self._spread(source.aevs[rows], slots, shape)
        if source.jacobians is None:
            return CachedAEVs(packed)
        return self._jacobian_features(packed, self._jacobians(source.jacobians, index, packed.shape[-1]), owner, slots)

    def _jacobian_features(
        self, aevs: Tensor, jacobians: Tensor, owner: np.ndarray, slots: np.ndarray
    ) -> CachedJacobians:
        n = self.largest
        within = np.arange(len(owner)) - np.searchsorted(owner, owner)
        place = np.zeros((self.batch_size, n), dtype=np.int64)
        place[owner, within] = slots
        rows = np.zeros(aevs.shape[0] * aevs.shape[1], dtype=np.int64)
        rows[slots] = owner * n + within
        return CachedJacobians(aevs, jacobians, self._index(place), self._index(rows))

    def _jacobians(self, flat: np.ndarray, index: np.ndarray, length: int) -> Tensor:
        """(M, n*D, 3n) of the structures at `index`. flat: `Source.jacobians`."""
        n = self.largest
        full = (self._sizes[index] == n).all() and len(index) == self.batch_size
        out = (torch.empty if full else torch.zeros)(self.batch_size, n * length, 3 * n, dtype=self.dtype)
        view = out.numpy().reshape(self.batch_size, n, length, 3 * n)
        for m, structure in enumerate(index):
            size = self._sizes[structure]
            start, end = length * self._unit_offsets[structure : structure + 2]
            view[m, :size, :, : 3 * size] = flat[start:end].reshape(size, length, 3 * size)
        return out.to(self.device)

    def _spread(self, values: np.ndarray, slots: np.ndarray, shape: tuple[int, int]) -> Tensor:
        """Values of atoms (a,...) in their slots (S,N,...), zero elsewhere."""
        out = np.zeros((shape[0] * shape[1], *values.shape[1:]))
        out[slots] = values
        return self._tensor(out.reshape(*shape, *values.shape[1:]))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, self.dtype)

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


class _Tables:
    """Neighbour tables of any batch of a source, from those of each sequence of species in it."""

    def __init__(self, source: Source, members: np.ndarray) -> None:
        starts, ends = source.offsets[:-1][members], source.offsets[1:][members]
        sequences = [tuple(source.species[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]
        numbers = {sequence: number for number, sequence in enumerate(dict.fromkeys(sequences))}
        self._kind = np.full(len(source.offsets) - 1, -1)
        self._kind[members] = [numbers[sequence] for sequence in sequences]
        lists = [neighbour_lists(sequence, source.n_species) for sequence in numbers]
        flat = [[*singles, *(pair.reshape(len(pair), -1) for pair in pairs)] for singles, pairs in lists]
        self._n_singles = source.n_species
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
