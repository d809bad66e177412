"""Epochs: each structure once, in an order that seed and epoch decide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pykinml_func.config import AEVConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.loader import Loader, epoch_order
from pykinml_func.types import Structures

CONFIG = AEVConfig(elements=("C", "H"), n_radial=2, n_angular_radial=2, n_angular=2)
MEMBERS = np.array([7, 3, 11, 0, 5, 2, 9, 8])

MakeLoader = Callable[..., Loader]


@pytest.fixture
def make_loader(
    make_structures: Callable[..., Structures], make_source: Callable[[Structures, AEVConfig, str], Source]
) -> MakeLoader:
    source = make_source(make_structures(["CH4", "C2H2", "H2"] * 4), CONFIG, "positions")
    source = source._replace(energies=np.arange(12.0)[:, None])  # a structure's label is its number

    def make(batch_size: int, seed: int | None) -> Loader:
        return Loader(Packer(source, MEMBERS, batch_size, torch.float64, torch.device("cpu")), seed)

    return make


def order(loader: Loader, epoch: int) -> list[int]:
    return [int(v) for batch in loader.epoch(epoch) for v in batch.energies[batch.energy_mask.bool()]]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
@pytest.mark.parametrize("seed", [None, 4])
def test_each_structure_comes_once_an_epoch(make_loader: MakeLoader, batch_size: int, seed: int | None):
    loader = make_loader(batch_size, seed)
    batches = list(loader.epoch(3))
    assert len(batches) == loader.n_batches == -(-8 // min(batch_size, 8))
    assert {len(batch.energies) for batch in batches} == {min(batch_size, 8)}
    assert sorted(order(loader, 3)) == sorted(MEMBERS)


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_an_epoch_goes_on_after_the_batches_that_are_done(make_loader: MakeLoader, done: int):
    loader = make_loader(3, 4)
    rest = [int(v) for batch in loader.epoch(2, done) for v in batch.energies[batch.energy_mask.bool()]]
    assert rest == order(loader, 2)[3 * done :]
    assert len(list(loader.epoch(2, done))) == loader.n_batches - done


def test_a_small_set_is_shuffled_whole():
    """As in every version: a run can be repeated."""
    members = np.arange(100) * 3
    expected = np.random.default_rng([7, 5]).permutation(members)
    np.testing.assert_array_equal(epoch_order(members, 7, 5), expected)
    np.testing.assert_array_equal(epoch_order(members, 7, 5, block=10, window=10), expected)


@pytest.mark.parametrize("length", [41, 1000, 1037])
def test_an_epoch_of_a_large_set_has_each_structure_once(length: int):
    members = np.random.default_rng(0).permutation(length) * 2
    found = epoch_order(members, 1, 3, block=10, window=4)
    assert sorted(found) == sorted(members)
    assert not np.array_equal(found, epoch_order(members, 1, 4, block=10, window=4))
    assert not np.array_equal(found, epoch_order(members, 2, 3, block=10, window=4))
    np.testing.assert_array_equal(found, epoch_order(members, 1, 3, block=10, window=4))


def test_a_large_set_is_shuffled_in_windows_from_all_over_it():
    """Of ten structures a block and four blocks a window, so that few blocks are read at a time."""
    windows = epoch_order(np.arange(1000), 1, 3, block=10, window=4).reshape(25, 40) // 10
    assert all(len(set(window.tolist())) == 4 for window in windows)
    assert np.ptp(windows, axis=1).mean() > 40  # of 100 blocks
    assert (np.diff(windows, axis=1) == 0).mean() < 0.35  # a quarter, by chance


def test_without_a_seed_the_order_is_kept(make_loader: MakeLoader):
    assert order(make_loader(3, None), 0) == order(make_loader(3, None), 5) == MEMBERS.tolist()


def test_seed_and_epoch_decide_the_order(make_loader: MakeLoader):
    first = order(make_loader(3, 4), 2)
    assert first == order(make_loader(8, 4), 2) == epoch_order(MEMBERS, 4, 2).tolist()
    assert first != order(make_loader(3, 4), 1)
    assert first != order(make_loader(3, 5), 2)
    assert first != MEMBERS.tolist()
