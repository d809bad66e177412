"""Neighbour tables: near ones give what all pairs give, and grow with the number of atoms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from pykinml_func.config import AEVConfig
from pykinml_func.data import batching
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.neighbours import near_tables
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.aev import aevs
from pykinml_func.types import Structures

CONFIG = AEVConfig(elements=("C", "H", "O"), n_radial=3, n_angular_radial=2, n_angular=3)
CUTOFFS = CONFIG.radial_cutoff, CONFIG.angular_cutoff
TOLERANCE = 1e-12

Structured = Callable[..., Structures]
Sourced = Callable[[Structures, AEVConfig, str], Source]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, and where no C++ compiler was found."""
    monkeypatch.setattr(aev_kernel, "available", lambda: False)


def packed(source: Source, dtype: torch.dtype = torch.float64) -> tuple[Packer, np.ndarray]:
    everything = np.arange(len(source.offsets) - 1)
    return Packer(source, everything, len(everything), dtype, torch.device("cpu")), everything


def evaluated(source: Source, dtype: torch.dtype = torch.float64) -> tuple[np.ndarray, np.ndarray]:
    """AEVs (A,D), and their product with vectors (A,3), of the source's atoms."""
    packer, index = packed(source, dtype)
    found, pull = packer.pack(index).features.aevs_and_pullback(CONFIG)
    vectors = torch.linspace(-1, 1, found.numel(), dtype=dtype).reshape(1, *found.shape)
    return packer.unpack(index, found), packer.unpack(index, pull(vectors)[0])


def spread_out(structures: Structures, factor: float = 1.6) -> Structures:
    """So that many atoms are beyond the cutoffs."""
    return structures._replace(positions=factor * structures.positions)


@pytest.fixture
def mixed(make_structures: Structured, make_source: Sourced) -> Source:
    """Structures large and small, in one batch."""
    return make_source(spread_out(make_structures(["C9H12O5", "H2O", "H", "C13H20O3", "CO"])), CONFIG, "positions")


def test_near_neighbours_give_the_aevs_and_products_of_all_pairs(mixed: Source):
    near, every = evaluated(mixed._replace(cutoffs=CUTOFFS)), evaluated(mixed)
    for found, expected in zip(near, every, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    one = slice(mixed.offsets[3], mixed.offsets[4])
    alone = aevs(CONFIG, torch.from_numpy(mixed.species[one]), torch.from_numpy(mixed.positions[one]))
    np.testing.assert_allclose(near[0][one], alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rounding", [-1e-8, 0, 1e-8])
def test_it_does_not_matter_on_which_side_of_the_cutoff_single_precision_puts_an_atom(rounding: float):
    line = np.arange(24)[:, None] * np.array([[CONFIG.radial_cutoff * (1 + rounding), 0.0, 0.0]])
    source = Source(np.arange(24) % 3, line, np.array([0, 24]), 3, np.zeros((1, 1)))
    near = evaluated(source._replace(cutoffs=CUTOFFS), torch.float32)
    for found, expected in zip(near, evaluated(source, torch.float32), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_tables_hold_each_neighbour_and_each_angle_once():
    """H at 0, C at 1, H at 2, C at 4.5 Å on a line, cutoffs 2.6 and 2.1 Å; slots as the packer gives them."""
    positions = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [4.5, 0, 0]])
    slots = np.array([2, 0, 3, 1])
    tables = near_tables([positions], (2.6, 2.1), np.array([1, 0, 1, 0]), slots, (2, 2), torch.device("cpu"))
    carbons, hydrogens = (table.tolist() for table in tables.neighbours)
    assert carbons == [[0, 0], [1, 1], [0, 2], [0, 1]]
    assert [sorted(row) for row in hydrogens] == [[2, 3], [1, 3], [2, 3], [2, 3]]
    both_carbon, mixed_kinds, both_hydrogen = (table.tolist() for table in tables.pairs)
    assert [len(row) for row in both_carbon] == [0, 0, 0, 0]
    assert [[sorted(pair) for pair in row] for row in mixed_kinds] == [[[0, 0]], [[1, 1]], [[0, 3]], [[0, 2]]]
    assert [[sorted(pair) for pair in row] for row in both_hydrogen] == [[[2, 3]], [[1, 1]], [[2, 2]], [[3, 3]]]


def test_atoms_of_different_structures_are_no_neighbours():
    """Two structures in the same place."""
    positions = np.array([[0.0, 0, 0], [1, 0, 0]])
    tables = near_tables([positions, positions], CUTOFFS, np.zeros(4, int), np.arange(4), (1, 4), torch.device("cpu"))
    assert tables.neighbours[0].tolist() == [[1], [0], [3], [2]]
    assert tables.pairs[0].shape == (4, 0, 2)


def test_tables_of_a_long_chain_grow_with_its_length():
    entries = []
    for n in (100, 200, 400):
        chain = np.arange(n)[:, None] * np.array([[1.4, 0, 0]])
        source = Source(np.sort(np.arange(n) % 3), chain, np.array([0, n]), 3, np.zeros((1, 1)), cutoffs=CUTOFFS)
        packer, index = packed(source)
        entries.append(sum(table.numel() for table in tree_leaves(packer.pack(index).features.tables)))
    assert entries[1] <= 2.1 * entries[0] and entries[2] <= 2.1 * entries[1]


def test_small_structures_and_training_keep_tables_that_need_no_geometry(
    mixed: Source, make_structures: Structured, make_source: Sourced, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: object) -> None:
        raise AssertionError("neighbours were looked for")

    monkeypatch.setattr(batching, "near_tables", refused)
    small = make_source(make_structures(["C2H4O", "CH4"]), CONFIG, "positions")
    for source in (small._replace(cutoffs=CUTOFFS), mixed):
        packer, index = packed(source)
        packer.pack(index)
    packer, index = packed(mixed._replace(cutoffs=CUTOFFS))
    with pytest.raises(AssertionError, match="looked for"):
        packer.pack(index)
