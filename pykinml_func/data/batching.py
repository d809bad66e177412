"""Batches of few shapes: atoms packed by species into (S,N) slots, the rest of which is padding.

M is fixed, and N and P are one of three widths each at most, so that a compiled step meets as few shapes where sizes
are mixed.

# M structures of a batch, L fidelity levels, A atoms of all structures, S species, N atoms a species (padded), D AEV
# length, P ordered pairs of atoms of one structure (padded), B terms of an AEV that depend on one neighbour, E members
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pykinml_func.data.elements import composition
from pykinml_func.data.featurize import pair_offsets
from pykinml_func.data.neighbours import AllPairs, near_tables
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.features import CachedAEVs, CachedJacobians, Geometry, TabulatedGeometry
from pykinml_func.types import Batch, Features, NeighbourTables, atom_rows

_SAMPLED_BATCHES = 256

_LARGE = 20
"""Atoms of a structure from which near neighbours are worth looking for, where that is allowed at all."""


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
    has_forces: np.ndarray | None = None
    """(M,L) whether a structure has forces, where forces are there at all"""
    aevs: np.ndarray | None = None
    """(A,D)"""
    jacobians: np.ndarray | None = None
    """(P,3,B) of all pairs; see `featurize.pair_offsets`"""
    cutoffs: tuple[float, float] | None = None
    """Å, radial and angular: tables of larger structures then hold only the neighbours within. None where batches of
    the same structures come again and again, as in training, or positions are to be replaced."""


class Packer:
    """Cuts batches of at most `batch_size` structures out of `members` of a source, all with the same padding rules."""

    def __init__(
        self,
        source: Source,
        members: np.ndarray,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """members: (k,) indices of the structures that batches may hold; share: rank and number of the ranks that
        have a part of each batch. Raises TypeError for a source that has forces and does not say of which structures.
        """
        if (source.forces is None) != (source.has_forces is None):
            raise TypeError("forces and has_forces must be given together")
        self.source, self.members, self.dtype, self.device = source, members, dtype, device
        self.batch_size = max(1, min(batch_size, len(members)))
        self._rank, self._ranks = share
        self._capacity = -(-self.batch_size // self._ranks)
        """structures of a batch that one rank has at most"""
        self._sizes = np.diff(source.offsets)
        rows = atom_rows(source.offsets, members)
        offsets = np.concatenate([[0], np.cumsum(self._sizes[members])])
        self._widths = self._ladder(composition(source.species[rows], offsets, source.n_species))

    def of(self, members: np.ndarray, most: int | None = None) -> Packer:
        """A packer alike of other members of the source. most: structures of a batch at most; default: as many as
        here.
        """
        size = self.batch_size if most is None else min(most, self.batch_size)
        return Packer(self.source, members, size, self.dtype, self.device, (self._rank, self._ranks))

    def unshared(self, members: np.ndarray) -> Packer:
        """A packer alike of other members of the source, whose batches are not shared with other ranks."""
        return Packer(self.source, members, self.batch_size, self.dtype, self.device)

    @cached_property
    def _all_pairs(self) -> AllPairs:
        ends = zip(self.source.offsets[self.members], self.source.offsets[self.members + 1], strict=True)
        sequences = [tuple(self.source.species[start:end].tolist()) for start, end in ends]
        return AllPairs(sequences, self.members, self.source.n_species)

    @cached_property
    def _pair_offsets(self) -> np.ndarray:
        """(M+1,): where Jacobians begin in `Source.jacobians`."""
        return pair_offsets(self._sizes)

    @cached_property
    def _pair_widths(self) -> np.ndarray:
        return self._ladder(np.diff(self._pair_offsets)[self.members, None])

    def batches(self, order: np.ndarray) -> Iterator[Batch]:
        """The structures at `order`, cut into consecutive batches, of each the own share; the last is padded to the
        size of the others.
        """
        return (self.pack(self._share(whole), whole) for whole in self.cut(order))

    def member_batches(self, orders: Sequence[np.ndarray]) -> Iterator[Batch]:
        """As `batches`, of an ensemble. orders: (k,) of each member."""
        return (
            self.pack_members([self._share(whole) for whole in wholes], wholes)
            for wholes in zip(*map(self.cut, orders), strict=True)
        )

    def cut(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """The indices of each of these batches, of all ranks together."""
        return (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))

    def _share(self, whole: np.ndarray) -> np.ndarray:
        return whole[self._rank :: self._ranks]

    def pack(self, index: np.ndarray, whole: np.ndarray | None = None) -> Batch:
        """One batch of the structures at `index`, the share of those at `whole` (default: all of them)."""
        batch = self.pack_members([index], [index if whole is None else whole])
        labels: dict[str, Any] = {name: getattr(batch, name) for name in Batch._fields[2:]}
        alone: dict[str, Any] = {name: None if label is None else label[0] for name, label in labels.items()}
        return batch._replace(**alone)

    def pack_members(self, indices: Sequence[np.ndarray], wholes: Sequence[np.ndarray]) -> Batch:
        """A batch of each member's own structures as one, in which the networks of all members stand side by side.

        indices, wholes: as in `pack`, one for each of E members. Features are of (E S,N) slots, and structure k of
        member e is e M + k; labels and counts have a leading axis E.
        """
        source, index = self.source, np.concatenate(indices)
        member = np.repeat(np.arange(len(indices)), [len(own) for own in indices])
        place = member * self._capacity + np.concatenate([np.arange(len(own)) for own in indices])
        sizes, rows = self._sizes[index], atom_rows(source.offsets, index)
        owner = np.repeat(np.arange(len(index)), sizes)
        shape = len(indices), source.n_species
        slots, width = self._slots(source.species[rows] + source.n_species * member[owner], shape[0] * shape[1])
        rectangle = shape[0] * shape[1], width
        structure_index = np.full(rectangle[0] * width, shape[0] * self._capacity)
        structure_index[slots] = place[owner]
        energies = np.full((shape[0] * self._capacity, source.energies.shape[1]), np.nan)
        energies[place] = source.energies[index]
        labelled = np.isfinite(energies)
        forces = weights = n_forces = None
        if source.forces is not None and source.has_forces is not None:
            there = source.has_forces[index[owner]]
            labels = np.where(there[..., None], source.forces[rows], 0.0)
            forces = self._spread(labels, slots, rectangle).unflatten(0, shape)
            weights = self._spread(there / (3 * sizes[owner, None]), slots, rectangle).unflatten(0, shape)
            n_forces = self._tensor(np.stack([source.has_forces[whole].sum(axis=0) for whole in wholes]))
        return Batch(
            self._features(index, rows, owner, slots, rectangle),
            self._index(structure_index.reshape(rectangle)),
            self._tensor(np.where(labelled, energies, 0.0)).unflatten(0, (shape[0], -1)),
            self._tensor(labelled).unflatten(0, (shape[0], -1)),
            forces,
            weights,
            self._tensor(np.stack([np.isfinite(source.energies[whole]).sum(axis=0) for whole in wholes])),
            n_forces,
            self._tensor(np.array([len(own) / len(whole) for own, whole in zip(indices, wholes, strict=True)])),
        )

    def unpack(self, index: np.ndarray, per_atom: Tensor) -> np.ndarray:
        """The rows of `per_atom` (S,N,...) of the atoms of the structures at `index`, in the source's order of atoms.

        per_atom: what was computed from `pack(index)`.
        """
        slots, _ = self._slots(self.source.species[atom_rows(self.source.offsets, index)], self.source.n_species)
        found: np.ndarray = per_atom.flatten(0, 1).cpu().numpy()[slots]
        return found

    def _ladder(self, counts: np.ndarray) -> np.ndarray:
        """The widths that batches take: what most random batches need, what nearly all do, and what any can need.

        counts: (k,C) of each member, of C kinds, each of which must fit into the width.
        """
        most = np.sort(counts, axis=0)[-self._capacity :].sum(axis=0).max(initial=1)
        if len(counts) <= self._capacity:  # one batch holds them all
            return np.array([most])
        drawn = np.random.default_rng(0).integers(len(counts), size=(_SAMPLED_BATCHES, self._capacity))
        needed = counts[drawn].sum(axis=1).max(axis=1)
        return np.unique(np.minimum([np.quantile(needed, 0.9).astype(int), needed.max(), most], most).clip(1))

    def _slots(self, kinds: np.ndarray, n_kinds: int) -> tuple[np.ndarray, int]:
        """The slot of each atom (a,) in the flattened (n_kinds,N), and N. kinds: (a,) its species, of its member."""
        counts = np.bincount(kinds, minlength=n_kinds)
        width = int(self._widths[np.searchsorted(self._widths, counts.max())])
        order = np.argsort(kinds, kind="stable")
        starts = np.cumsum(counts) - counts
        slots = np.empty_like(order)
        slots[order] = np.arange(len(kinds)) + (np.arange(n_kinds) * width - starts)[kinds[order]]
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
            if self.device.type == "cpu" and aev_kernel.available():
                return Geometry(positions, self._listed(sizes, slots, shape))
            return TabulatedGeometry(positions, self._tables(index, rows, slots, shape))
        packed = self._gathered(source.aevs, rows, slots, shape)
        if source.jacobians is None:
            return CachedAEVs(packed)
        return self._jacobian_features(packed, source.jacobians, index, slots)

    def _tables(
        self, index: np.ndarray, rows: np.ndarray, slots: np.ndarray, shape: tuple[int, int]
    ) -> NeighbourTables:
        source, sizes = self.source, self._sizes[index]
        if source.cutoffs is None or sizes.max(initial=0) < _LARGE:
            return self._all_pairs.of_batch(index, slots, shape[0] * shape[1], self.device)
        structures = np.split(source.positions[rows], np.cumsum(sizes)[:-1])
        return near_tables(structures, source.cutoffs, source.species[rows], slots, shape, self.device)

    def _listed(self, sizes: np.ndarray, slots: np.ndarray, shape: tuple[int, int]) -> aev_kernel.Atoms:
        listed = np.zeros(shape[0] * shape[1], dtype=np.int64)
        listed[: len(slots)] = slots
        offsets = np.full(shape[0] // self.source.n_species * self._capacity + 1, len(slots))
        offsets[: len(sizes)] = np.cumsum(sizes) - sizes
        species = np.repeat(np.arange(shape[0]) % self.source.n_species, shape[1])
        return aev_kernel.Atoms(*map(self._index, (listed, offsets, species)))

    def _jacobian_features(
        self, aevs: Tensor, jacobians: np.ndarray, index: np.ndarray, slots: np.ndarray
    ) -> CachedJacobians:
        """jacobians: `Source.jacobians`."""
        starts, ends = self._pair_offsets[index], self._pair_offsets[index + 1]
        filled = int((ends - starts).sum())
        widths = len(aevs) // self.source.n_species * self._pair_widths
        width = int(widths[np.searchsorted(widths, filled)])
        out = torch.empty(width, *jacobians.shape[1:], dtype=self.dtype)
        pairs = np.zeros((2, width), dtype=np.int64)
        view, to, first_atom = out.numpy(), 0, 0
        for start, end, size in zip(starts, ends, self._sizes[index], strict=True):
            after = to + end - start
            view[to:after] = jacobians[start:end]
            own = slots[first_atom : first_atom + size]
            pairs[:, to:after] = own[_pairs(int(size))]
            to, first_atom = after, first_atom + size
        view[filled:] = 0
        return CachedJacobians(aevs, out.to(self.device), self._index(pairs[0]), self._index(pairs[1]))

    def _spread(self, values: np.ndarray, slots: np.ndarray, shape: tuple[int, int]) -> Tensor:
        """Values of atoms (a,...) in their slots (S,N,...), zero elsewhere."""
        out = np.zeros((shape[0] * shape[1], *values.shape[1:]))
        out[slots] = values
        return self._tensor(out.reshape(*shape, *values.shape[1:]))

    def _gathered(self, values: np.ndarray, rows: np.ndarray, slots: np.ndarray, shape: tuple[int, int]) -> Tensor:
        """`_spread` of values[rows], which is copied once: AEVs are most of a batch."""
        wanted, empty = np.zeros(shape[0] * shape[1], dtype=np.int64), np.ones(shape[0] * shape[1], dtype=bool)
        wanted[slots], empty[slots] = rows, False
        out = np.take(values, wanted, axis=0)
        out[empty] = 0
        return self._tensor(out.reshape(*shape, *values.shape[1:]))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, self.dtype)

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


@cache
def _pairs(size: int) -> np.ndarray:
    """(2, n (n-1)): the ordered pairs of n atoms, as in `aev_kernel.pair_jacobians`."""
    return np.array(np.nonzero(~np.eye(size, dtype=bool)))
