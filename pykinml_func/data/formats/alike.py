"""A stretch of a database whose rows are alike: all checks and copies of the careful way, on whole arrays.

# R rows, K of them with labels, L fidelity levels, n atoms of one structure
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pykinml_func.data.formats.blobs import stacked_blobs
from pykinml_func.data.formats.blocks import Found
from pykinml_func.data.formats.rows import Query
from pykinml_func.data.geometry import CLOSEST, closest_pair, squared_distances
from pykinml_func.types import Structures

_FEW = 64
"""Atoms of which all pairs are sooner looked at than near ones found."""

_PAIRS = 2**18
"""Pairs of atoms whose distances are looked at at a time."""


class _Labels(NamedTuple):
    labelled: np.ndarray
    """(R,) whether a row has any"""
    levels: np.ndarray
    """(L,)"""
    energies: np.ndarray
    """(K,L)"""
    forces: np.ndarray
    """(K,n,L,3)"""


def read_alike(
    label: str, rows: Sequence[Any], labels: Sequence[Any], numbers: np.ndarray, query: Query
) -> Found | None:
    """The structures of a stretch; None where a row is unlike the others, or fails a check that the careful way names.

    label: what ids begin with; rows: (id, geometry, name, temperature), in the order of ids; labels: (id, level,
    energy, forces), in the order of ids, then levels; numbers: (n,) of every structure.
    """
    if not rows:
        return None
    ids = np.array([row[0] for row in rows])
    found = _labels(ids, labels, len(numbers), query)
    if found is None:
        return None
    kept = [row for row, there in zip(rows, found.labelled.tolist(), strict=True) if there]
    positions = stacked_blobs([row[1] for row in kept], len(numbers))
    plain = {type(row[2]) for row in kept} <= {str, type(None)} and _are_numbers(row[3] for row in kept)
    if positions is None or not plain or not np.isfinite(positions).all() or not _apart(positions):
        return None
    structures = Structures(
        np.tile(numbers, len(kept)),
        positions.reshape(-1, 3),
        np.arange(len(kept) + 1) * len(numbers),
        found.levels,
        found.energies,
        found.forces.reshape(positions.size // 3, len(found.levels), 3),
        np.array([f"{label}/{row[0]}" for row in kept], dtype=str),
        np.array([row[2] or "" for row in kept], dtype=str),
        np.array([np.nan if row[3] is None else row[3] for row in kept], dtype=np.float64),
    )
    return Found(structures, len(rows) - len(kept))


def _are_numbers(values: Any) -> bool:
    return {type(value) for value in values} <= {int, float, type(None)}


def _labels(ids: np.ndarray, labels: Sequence[Any], n_atoms: int, query: Query) -> _Labels | None:
    """Energies and forces of the rows with `ids` (R,); None where one is not a number a row and level."""
    if not query.labels:
        nothing = np.zeros((len(ids), n_atoms, 0, 3))
        return _Labels(np.ones(len(ids), dtype=bool), np.zeros(0, dtype=int), nothing[:, 0, :, 0], nothing)
    if not {type(value) for label in labels for value in label[:2]} <= {int}:
        return None
    owners = np.array([label[0] for label in labels], dtype=np.int64)
    known = np.isin(owners, ids)
    labels = [label for label, there in zip(labels, known.tolist(), strict=True) if there]
    fidelities = np.array([label[1] for label in labels], dtype=np.int64)
    levels = np.unique(fidelities if query.levels is None else np.array(query.levels, dtype=np.int64))
    rows, columns = np.searchsorted(ids, owners[known]), np.searchsorted(levels, fidelities)
    twice = (np.diff(rows * len(levels) + columns) == 0).any()
    if twice or not {type(label[2]) for label in labels} <= {int, float}:
        return None
    labelled = np.zeros(len(ids), dtype=bool)
    labelled[rows] = True
    kept = np.cumsum(labelled)[rows] - 1
    energies = np.full((int(labelled.sum()), len(levels)), np.nan)
    energies[kept, columns] = [label[2] for label in labels]
    forces = _forces([label[3] for label in labels], kept, columns, (*energies.shape, n_atoms))
    if forces is None or not np.isfinite(energies[kept, columns]).all():
        return None
    return _Labels(labelled, levels, energies, forces)


def _forces(
    blobs: Sequence[Any], kept: np.ndarray, columns: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray | None:
    """(K,n,L,3), NaN where there is no blob. kept, columns: (k,) where each belongs; shape: K, L, n."""
    there = np.array([blob is not None for blob in blobs], dtype=bool)
    found = stacked_blobs([blob for blob in blobs if blob is not None], shape[2])
    if found is None or not np.isfinite(found).all():
        return None
    forces = np.full((shape[0], shape[2], shape[1], 3), np.nan)
    forces[kept[there], :, columns[there]] = found
    return forces


def _apart(positions: np.ndarray) -> bool:
    """Whether no two atoms of a structure are in one place. positions: (K,n,3) Å."""
    n = positions.shape[1]
    if n > _FEW:
        return all(closest_pair(each) is None for each in positions)
    step = max(1, _PAIRS // n**2)
    chunks = (positions[start : start + step] for start in range(0, len(positions), step))
    return all(bool((squared_distances(chunk) >= CLOSEST**2).all()) for chunk in chunks)
