"""Made-up molecules: chains that branch at random, and compact clusters, of C, H, N, O and F.

# M structures, A atoms in all of them, n atoms of one structure
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.spatial import cKDTree

ELEMENTS = ("C", "H", "N", "O", "F")
CLOSEST = 1.0
"""Å; no two atoms are nearer"""
LONGEST_BOND = 1.5
"""Å; every atom of a molecule but the first is at most so far from an earlier one"""
DENSITY = 0.08
"""atoms a Å³ of a cluster: a little less than in liquid hydrocarbons"""


def molecule(generator: np.random.Generator, symbols: Sequence[str]) -> Atoms:
    """A molecule of these atoms: each is put at a bond's length from an earlier one, and near none."""
    placed = np.zeros((1, 3))
    while len(placed) < len(symbols):
        direction = generator.normal(size=3)
        bond = generator.uniform(CLOSEST, LONGEST_BOND) * direction / np.linalg.norm(direction)
        atom = placed[generator.integers(len(placed))] + bond
        if np.linalg.norm(placed - atom, axis=1).min() >= CLOSEST:
            placed = np.vstack([placed, atom])
    return Atoms(symbols, placed)


def cluster(generator: np.random.Generator, n_atoms: int) -> Atoms:
    """A ball of `n_atoms` of the five elements, as dense whatever its size."""
    radius = (3 * n_atoms / (4 * np.pi * DENSITY)) ** (1 / 3)
    placed = np.zeros((1, 3))
    while len(placed) < n_atoms:
        atom = generator.uniform(-radius, radius, 3)
        if np.linalg.norm(atom) <= radius and cKDTree(placed).query(atom)[0] >= CLOSEST:
            placed = np.vstack([placed, atom])
    return Atoms(generator.choice(ELEMENTS, n_atoms), placed)


def composition(generator: np.random.Generator, n_atoms: int, shares: Sequence[float]) -> list[str]:
    """Symbols (n,) of one to five elements, drawn by `shares` among those that are chosen."""
    kinds = generator.choice(len(ELEMENTS), generator.integers(1, len(ELEMENTS) + 1), replace=False)
    weights = np.array(shares)[kinds]
    return sorted(generator.choice(np.array(ELEMENTS)[kinds], n_atoms, p=weights / weights.sum()).tolist())


def whole_shares(n_atoms: int, shares: Sequence[float]) -> list[str]:
    """Symbols (n,) whose numbers are as near to the shares as whole ones can be."""
    exact = n_atoms * np.array(shares) / sum(shares)
    counts = exact.astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n_atoms - counts.sum()]] += 1
    return np.repeat(ELEMENTS, counts).tolist()


def labelled(atoms: Atoms) -> Atoms:
    """With energy and forces of Gaussian wells between all atoms: smooth, and the same whatever the elements."""
    vectors = atoms.positions[:, None] - atoms.positions
    wells = np.exp(-0.5 * (vectors**2).sum(axis=2))
    np.fill_diagonal(wells, 0)
    forces = -(wells[..., None] * vectors).sum(axis=1)
    atoms.calc = SinglePointCalculator(atoms, energy=-0.5 * wells.sum(), forces=forces)
    return atoms


def write(path: Path, images: Sequence[Atoms]) -> Path:
    """Write them with their labels as extended XYZ."""
    import ase.io

    ase.io.write(path, images, format="extxyz")
    return path
