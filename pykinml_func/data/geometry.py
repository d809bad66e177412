"""What positions must be."""

from __future__ import annotations

import numpy as np

CLOSEST = 1e-3
"""Å; atoms nearer than this are the same atom twice, or a file gone wrong"""

_FEW = 64
"""Atoms of which all pairs are sooner looked at than near ones found."""


def closest_pair(positions: np.ndarray) -> tuple[int, int] | None:
    """Two atoms of positions (n,3) Å that are nearer to each other than CLOSEST, if there are any."""
    if len(positions) < 2:
        return None
    if len(positions) > _FEW:
        from scipy.spatial import cKDTree

        return next(iter(cKDTree(positions).query_pairs(CLOSEST)), None)
    squared = squared_distances(positions)
    first, second = divmod(int(squared.argmin()), len(positions))
    return (first, second) if squared[first, second] < CLOSEST**2 else None


def squared_distances(positions: np.ndarray) -> np.ndarray:
    """Å² between the atoms of positions (...,n,3): (...,n,n), infinite from an atom to itself."""
    vectors = positions[..., :, None, :] - positions[..., None, :, :]
    squared: np.ndarray = np.einsum("...x,...x->...", vectors, vectors)
    own = np.arange(positions.shape[-2])
    squared[..., own, own] = np.inf
    return squared
