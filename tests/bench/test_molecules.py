"""Made-up molecules: connected, no two atoms too near, labels that are a gradient."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from bench.molecules import (
    CLOSEST,
    DENSITY,
    ELEMENTS,
    LONGEST_BOND,
    cluster,
    composition,
    labelled,
    molecule,
    whole_shares,
    write,
)

EQUAL = (0.2, 0.2, 0.2, 0.2, 0.2)


def distances(atoms: object) -> np.ndarray:
    found: np.ndarray = atoms.get_all_distances()  # type: ignore[attr-defined]
    np.fill_diagonal(found, np.inf)
    return found


@pytest.mark.parametrize("size", [2, 7, 20])
def test_atoms_of_a_molecule_are_bonded_to_an_earlier_one_and_near_none(size: int):
    generator = np.random.default_rng(0)
    for _ in range(20):
        found = distances(molecule(generator, ["C"] * size))
        assert found.shape == (size, size) and found.min() >= CLOSEST
        assert all(found[atom, :atom].min() <= LONGEST_BOND for atom in range(1, size))


def test_clusters_are_as_dense_whatever_their_size():
    generator = np.random.default_rng(0)
    for size in (50, 200):
        atoms = cluster(generator, size)
        assert len(atoms) == size and distances(atoms).min() >= CLOSEST
        radius = (3 * size / (4 * np.pi * DENSITY)) ** (1 / 3)
        assert 0.9 * radius < np.linalg.norm(atoms.positions, axis=1).max() <= radius


def test_one_to_five_elements_are_drawn_by_their_shares():
    generator = np.random.default_rng(0)
    drawn = [composition(generator, 20, (0.3, 0.5, 0.08, 0.08, 0.04)) for _ in range(400)]
    assert {len(set(symbols)) for symbols in drawn} == {1, 2, 3, 4, 5}
    counts = Counter(symbol for symbols in drawn for symbol in symbols)
    assert set(counts) == set(ELEMENTS) and counts["H"] > counts["C"] > counts["F"]
    equal = Counter(symbol for _ in range(400) for symbol in composition(generator, 20, EQUAL))
    assert max(equal.values()) < 1.2 * min(equal.values())


def test_whole_shares():
    assert whole_shares(10, EQUAL) == sorted(ELEMENTS * 2, key=ELEMENTS.index)
    assert Counter(whole_shares(5, (0.3, 0.5, 0.08, 0.08, 0.04))) == {"C": 2, "H": 3}
    assert Counter(whole_shares(20, (0.3, 0.5, 0.08, 0.08, 0.04))) == {"C": 6, "H": 10, "N": 2, "O": 1, "F": 1}


def test_forces_are_minus_the_energys_gradient_and_are_written_with_it(tmp_path: Path):
    atoms = labelled(molecule(np.random.default_rng(0), list("CHNOF")))
    read_back = read(write(tmp_path / "molecules.extxyz", [atoms]))
    for atom in range(5):
        for axis in range(3):
            energies = []
            for step in (1e-4, -1e-4):
                moved = atoms.copy()
                moved.positions[atom, axis] += step
                energies.append(labelled(moved).get_potential_energy())
            slope = (energies[0] - energies[1]) / 2e-4
            assert read_back.get_forces()[atom, axis] == pytest.approx(-slope, abs=1e-6)
