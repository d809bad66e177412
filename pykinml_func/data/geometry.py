"""What positions must be."""

from __future__ import annotations

import numpy as np

CLOSEST = 1e-3
"""Å; atoms nearer than this are the same atom twice, or a file gone wrong"""


def closest_pair(positions: np.ndarray) -> tuple[int, int] | None:
    """The nearest two atoms of positions (n,3) Å, where they are nearer than CLOSEST."""
    if len(positions) < 2:
        return None
    vectors = positions[:, None] - positions
    squared = np.einsum("ijx,ijx->ij", vectors, vectors)
    np.fill_diagonal(squared, np.inf)
    first, second = divmod(int(squared.argmin()), len(positions))
    return (first, second) if squared[first, second] < CLOSEST**2 else None
