"""Batches: every structure whole and in its place, few shapes, and nothing lost on the way back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from pykinml_func.config import AEVConfig
from pykinml_func.data import batching
from pykinml_func.data.batching import Packer, Source
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.aev import neighbour_lists
from pykinml_func.types import Batch, Structures, atom_rows

CONFIG = AEVConfig(elements=("C", "H", "O"), n_radial=2, n_angular_radial=2, n_angular=2)
FORMULAS = ["CH4", "H", "C2H4O", "CO", "CH3OH", "H2O", "HOCO", "O3", "CH4", "C3H4"]

Structured = Callable[..., Structures]
Sourced = Callable[[Structures, AEVConfig, str], Source]


def packer_of(source: Source, batch_size: int, members: np.ndarray | None = None) -> Packer:
    everything = np.arange(len(source.offsets) - 1)
    chosen = everything if members is None else members
    return Packer(source, chosen, batch_size, torch.float64, torch.device("cpu"))


@given(order=st.permutations(range(len(FORMULAS))), batch_size=st.integers(1, 12), length=st.integers(1, 10))
def test_unpacking_inverts_packing(
    make_structures: Structured, make_source: Sourced, order: list[int], batch_size: int, length: int
):
    source = make_source(make_structures(FORMULAS, levels=(0, 1)), CONFIG, "aevs")
    members = np.array(order[:length])
    packer = packer_of(source, batch_size, members)
    seen, energies = [], []
    for batch in packer.batches(members):
        index = members[len(seen) : len(seen) + packer.batch_size]
        assert batch.energy_mask.tolist() == [[1, 1]] * len(index) + [[0, 0]] * (packer.batch_size - len(index))
        energies += batch.energies[: len(index)].tolist()
        expected = atom_rows(source.offsets, index)
        np.testing.assert_array_equal(packer.unpack(index, batch.forces), source.forces[expected])
        np.testing.assert_array_equal(packer.unpack(index, batch.features.aevs), source.aevs[expected])
        slots = torch.arange(3)[:, None].expand(batch.structure_index.shape)
        np.testing.assert_array_equal(packer.unpack(index, slots), source.species[expected])
        seen += index.tolist()
    assert seen == members.tolist()
    np.testing.assert_array_equal(energies, source.energies[members])


@pytest.mark.parametrize("contents", ["positions", "aevs", "jacobians"])
@pytest.mark.usefixtures("either_aevs")
def test_padding_holds_nothing(make_structures: Structured, make_source: Sourced, contents: str):
    source = make_source(make_structures(FORMULAS, levels=(0, 1)), CONFIG, contents)
    packer = packer_of(source, 4)
    *_, last = packer.batches(np.arange(10))
    padding = last.structure_index == packer.batch_size
    assert padding.sum() == padding.numel() - 5 - 7  # CH4 and C3H4 are left for the last batch
    assert last.energy_mask.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert last.energies[2:].tolist() == [[0, 0], [0, 0]]
    assert not last.forces[padding].any()
    assert not last.component_weights[padding].any()
    rows = last.features.positions if contents == "positions" else last.features.aevs
    assert not rows[padding].any()


def test_component_weights_make_a_mean_over_each_structures_components(
    make_structures: Structured, make_source: Sourced
):
    packer = packer_of(make_source(make_structures(FORMULAS, levels=(0, 1, 2)), CONFIG, "aevs"), 10)
    batch = packer.pack(np.arange(10))
    weights = torch.zeros(11, 3, dtype=torch.float64).index_add(
        0, batch.structure_index.flatten(), batch.component_weights.flatten(0, 1)
    )
    torch.testing.assert_close(3 * weights[:10], torch.ones(10, 3, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_missing_label_is_zero_and_masked(make_structures: Structured, make_source: Sourced):
    structures = make_structures(FORMULAS, levels=(0, 1, 2))
    structures.energies[[0, 3], 0] = structures.energies[3, 2] = np.nan  # the 4th is left with its middle level
    source = make_source(structures, CONFIG, "aevs")
    batch = packer_of(source, 12).pack(np.arange(10))
    labelled = np.isfinite(structures.energies)
    assert batch.energy_mask.dtype == torch.float64
    np.testing.assert_array_equal(batch.energy_mask, labelled)
    np.testing.assert_array_equal(batch.energies, np.where(labelled, structures.energies, 0))


def test_missing_forces_are_zero_and_weigh_nothing(make_structures: Structured, make_source: Sourced):
    structures = make_structures(FORMULAS, levels=(0, 1))
    atoms, n = structures.offsets[2], structures.sizes[2]
    structures.forces[atoms : atoms + n, 1] = np.nan  # C2H4O at the upper level
    structures.forces[0, 0, 2] = np.nan  # one component of the first carbon, so that its molecule has none
    packer = packer_of(make_source(structures, CONFIG, "aevs"), 10)
    batch = packer.pack(np.arange(10))
    there = np.ones((len(structures.forces), 2), dtype=bool)
    there[: structures.sizes[0], 0] = there[atoms : atoms + n, 1] = False
    expected = there / (3 * np.repeat(structures.sizes, structures.sizes)[:, None])
    np.testing.assert_array_equal(packer.unpack(np.arange(10), batch.component_weights), expected)
    found = packer.unpack(np.arange(10), batch.forces)
    np.testing.assert_array_equal(found, np.where(there[..., None], structures.forces, 0))
    np.testing.assert_array_equal(batch.energy_mask, np.ones((10, 2)), "an energy does not need forces")


@pytest.mark.parametrize("contents", ["positions", "aevs", "jacobians"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
@pytest.mark.usefixtures("either_aevs")
def test_the_shares_of_all_ranks_are_the_whole_batch(
    make_structures: Structured, make_source: Sourced, contents: str, ranks: int
):
    """Ten structures in batches of four: the last one of two leaves some ranks without any."""
    structures = make_structures(FORMULAS, levels=(0, 1))
    structures.energies[3, 1] = structures.forces[: structures.sizes[0], 0] = np.nan
    source = make_source(structures, CONFIG, contents)
    order = np.array([9, 0, 3, 5, 1, 8, 7, 2, 6, 4])
    whole = packer_of(source, 4)
    packers = [
        Packer(source, np.arange(10), 4, torch.float64, torch.device("cpu"), (rank, ranks)) for rank in range(ranks)
    ]
    assert {packer.batch_size for packer in packers} == {4}
    batches = zip(whole.batches(order), *(packer.batches(order) for packer in packers), strict=True)
    for index, (batch, *shares) in zip(whole.cut(order), batches, strict=True):
        assert sum(share.share.item() for share in shares) == pytest.approx(batch.share.item(), rel=1e-15)
        labels = [share.energies[: len(index[rank::ranks])] for rank, share in enumerate(shares)]
        for rank, own in enumerate(labels):
            np.testing.assert_array_equal(own, batch.energies[: len(index)][rank::ranks])
        for share in shares:
            np.testing.assert_array_equal(share.n_energies, batch.n_energies)
            np.testing.assert_array_equal(share.n_forces, batch.n_forces)
            assert len(share.energies) == -(-4 // ranks)
        for counted in ("energy_mask", "component_weights"):
            parts = torch.stack([getattr(share, counted).flatten(0, -2).sum(dim=0) for share in shares])
            expected = getattr(batch, counted).flatten(0, -2).sum(dim=0)
            torch.testing.assert_close(parts.sum(dim=0), expected, rtol=1e-14, atol=0)
    assert batch.energy_mask.sum(dim=0).tolist() == [2, 2]  # the last one's


def test_without_forces_a_batch_has_none(make_structures: Structured, make_source: Sourced):
    source = make_source(make_structures(FORMULAS), CONFIG, "aevs")._replace(forces=None, has_forces=None)
    batch = packer_of(source, 4).pack(np.arange(4))
    assert batch.forces is None
    assert batch.component_weights is None


def test_neighbours_are_the_other_atoms_of_the_same_structure(
    make_structures: Structured, make_source: Sourced, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(aev_kernel, "available", lambda: False)
    source = make_source(make_structures(FORMULAS), CONFIG, "positions")
    batch = packer_of(source, 10).pack(np.arange(10))
    owner, species = batch.structure_index.flatten(), torch.arange(3).repeat_interleave(batch.structure_index.shape[1])
    tables = batch.features.tables
    kinds = [(a, b) for a in range(3) for b in range(a, 3)]
    for slot in range(len(owner)):
        mates = [s for s in range(len(owner)) if s != slot and owner[s] == owner[slot] < 10]
        for element, table in enumerate(tables.neighbours):
            found = [s for s in table[slot].tolist() if s != slot]
            assert sorted(found) == [s for s in mates if species[s] == element]
        for kind, table in zip(kinds, tables.pairs, strict=True):
            found = [tuple(sorted(pair)) for pair in table[slot].tolist() if pair != [slot, slot]]
            expected = [
                (a, b)
                for a in mates
                for b in mates
                if a < b and tuple(sorted((int(species[a]), int(species[b])))) == kind
            ]
            assert sorted(found) == expected


@pytest.mark.skipif(not aev_kernel.available(), reason="the compiled AEVs were not built")
@pytest.mark.parametrize("index", [[3, 0, 7, 1], [5]])
def test_the_compiled_aevs_hear_which_atoms_are_one_structure(
    make_structures: Structured, make_source: Sourced, index: list[int]
):
    source = make_source(make_structures(FORMULAS), CONFIG, "positions")
    batch = packer_of(source, 4).pack(np.array(index))
    rows, offsets, species = batch.features.atoms
    owner = batch.structure_index.flatten()
    assert len(offsets) == 5, "as many structures as the largest batch has, the last ones empty"
    assert offsets[-1] == sum(int(source.offsets[m + 1] - source.offsets[m]) for m in index)
    for m in range(4):
        listed = rows[offsets[m] : offsets[m + 1]].tolist()
        assert sorted(listed) == (owner == m).nonzero()[:, 0].tolist()
    assert species.tolist() == sorted(species.tolist())
    assert species.reshape(batch.structure_index.shape)[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("index", [[3, 0, 7, 1], [5], [2, 2]])
def test_each_stored_pair_is_of_one_structure(make_structures: Structured, make_source: Sourced, index: list[int]):
    source = make_source(make_structures(FORMULAS), CONFIG, "jacobians")
    batch = packer_of(source, 4).pack(np.array(index))
    owner = batch.structure_index.flatten()
    _, blocks, centres, neighbours = batch.features
    sizes = np.diff(source.offsets)[index]
    filled = int((sizes * (sizes - 1)).sum())
    pairs = list(zip(centres[:filled].tolist(), neighbours[:filled].tolist(), strict=True))
    assert len(set(pairs)) == filled
    assert all(a != b and owner[a] == owner[b] < len(index) for a, b in pairs)
    assert not blocks[filled:].any()
    expected = np.concatenate([source.jacobians[start:end] for start, end in pair_ranges(source, index)])
    np.testing.assert_array_equal(blocks[:filled], expected)


def pair_ranges(source: Source, index: list[int]) -> list[tuple[int, int]]:
    """Where the pairs of each structure at `index` are."""
    sizes = np.diff(source.offsets)
    ends = np.cumsum(sizes * (sizes - 1))
    return [(int(ends[m] - sizes[m] * (sizes[m] - 1)), int(ends[m])) for m in index]


def test_neighbour_lists_of_one_structure_are_padded_with_the_centre():
    singles, pairs = neighbour_lists((0, 1, 1), 2)
    assert [table.tolist() for table in singles] == [[[0], [0], [0]], [[1, 2], [2, 1], [1, 2]]]
    assert [table.shape for table in pairs] == [(3, 0, 2), (3, 1, 2), (3, 1, 2)]
    assert pairs[1].tolist() == [[[0, 0]], [[0, 2]], [[0, 1]]]
    assert pairs[2].tolist() == [[[1, 2]], [[1, 1]], [[2, 2]]]


def shapes(batches: list[Batch]) -> set[tuple[torch.Size, ...]]:
    return {tuple(leaf.shape for leaf in tree_leaves(batch)) for batch in batches}


@pytest.mark.parametrize("contents", ["positions", "aevs", "jacobians"])
@pytest.mark.usefixtures("either_aevs")
def test_mixed_sizes_meet_few_shapes(make_structures: Structured, make_source: Sourced, contents: str):
    generator = np.random.default_rng(0)
    structures = make_structures([FORMULAS[k] for k in generator.integers(0, len(FORMULAS), 300)])
    packer = packer_of(make_source(structures, CONFIG, contents), 20)
    batches = [batch for epoch in range(5) for batch in packer.batches(generator.permutation(300))]
    assert len(batches) == 75
    assert len(shapes(batches)) <= 3
    fill = [(batch.structure_index < 20).sum(dim=1).max() / batch.structure_index.shape[1] for batch in batches]
    assert np.mean(fill) >= 0.75, "most batches take the narrowest width, which nine in ten fit in"


def test_like_structures_meet_one_shape(make_structures: Structured, make_source: Sourced):
    packer = packer_of(make_source(make_structures(["CH4"] * 23), CONFIG, "jacobians"), 5)
    batches = list(packer.batches(np.arange(23)))
    assert batches[-1].energy_mask.sum() == 3
    assert len(shapes(batches)) == 1, "the short last batch is padded to the shape of the others"


def test_a_batch_is_no_larger_than_its_part(make_structures: Structured, make_source: Sourced):
    source = make_source(make_structures(FORMULAS), CONFIG, "aevs")
    assert packer_of(source, 500).batch_size == 10
    none = packer_of(source, 500, np.array([], dtype=np.int64))
    assert list(none.batches(none.members)) == []


def test_single_precision(make_structures: Structured, make_source: Sourced):
    source = make_source(make_structures(FORMULAS), CONFIG, "jacobians")
    batch = Packer(source, np.arange(10), 10, torch.float32, torch.device("cpu")).pack(np.arange(10))
    kinds = {leaf.dtype for leaf in tree_leaves(batch)}
    assert kinds == {torch.float32, torch.int64}


def test_jacobians_are_located_once(make_structures: Structured, make_source: Sourced, monkeypatch: pytest.MonkeyPatch):
    packer = packer_of(make_source(make_structures(FORMULAS), CONFIG, "jacobians"), 2)
    located, offsets = [], batching.pair_offsets
    monkeypatch.setattr(batching, "pair_offsets", lambda *given: located.append(given) or offsets(*given))
    assert len(list(packer.batches(np.arange(10)))) == 5
    assert len(located) == 1


def test_forces_come_with_the_structures_that_have_them(make_structures: Structured, make_source: Sourced):
    source = make_source(make_structures(["C2H2"]), CONFIG, "positions")
    with pytest.raises(TypeError, match="given together"):
        packer_of(source._replace(has_forces=None), 1)
