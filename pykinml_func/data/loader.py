"""The batches of each epoch: reshuffled from the seed, or in PyKinML's fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pykinml_func.data.batching import Packer
from pykinml_func.types import Batch

_BLOCK = 4096
"""Structures that lie side by side in a prepared set and are read at about the same time."""

_WINDOW = 32
"""Blocks that are shuffled together: up to so many a shuffle is one of single structures."""


def epoch_order(members: np.ndarray, seed: int, epoch: int, block: int = _BLOCK, window: int = _WINDOW) -> np.ndarray:
    """The order of `members` (k,) in an epoch; any epoch's can be had without those before it.

    Of more than `window` blocks, `window` at a time are drawn from all over the set, and their structures shuffled: so
    batches are as random, and what is larger than memory is read a few stretches at a time, not page by page.
    """
    generator = np.random.default_rng([seed, epoch])
    if len(members) <= block * window:
        return generator.permutation(members)
    ordered = np.sort(members)
    blocks = np.split(ordered, range(block, len(ordered), block))
    drawn = generator.permutation(len(blocks))
    windows = (np.concatenate([blocks[k] for k in part]) for part in np.split(drawn, range(window, len(drawn), window)))
    return np.concatenate([generator.permutation(each) for each in windows])


class Loader(NamedTuple):
    """Batches of a packer's members."""

    packer: Packer
    shuffle_seed: int | None
    """None keeps the members' order in every epoch"""

    @property
    def n_batches(self) -> int:
        """Batches an epoch."""
        return -(-len(self.packer.members) // self.packer.batch_size)

    def epoch(self, number: int, done: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` after the first `done`."""
        order = _order(self.packer.members, self.shuffle_seed, number)
        return self.packer.batches(order[done * self.packer.batch_size :])


class MemberLoader(NamedTuple):
    """Batches of an ensemble, every member of which has structures and shuffles of its own."""

    packer: Packer
    members: tuple[np.ndarray, ...]
    """(k,) structures of each, as many of all"""
    shuffle_seeds: tuple[int | None, ...]
    """of each; None keeps the order in every epoch"""

    @property
    def n_batches(self) -> int:
        """Batches an epoch."""
        return -(-len(self.members[0]) // self.packer.batch_size)

    def epoch(self, number: int, done: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` after the first `done`, of `Packer.pack_members`."""
        own = zip(self.members, self.shuffle_seeds, strict=True)
        orders = [_order(members, seed, number)[done * self.packer.batch_size :] for members, seed in own]
        return self.packer.member_batches(orders)


def _order(members: np.ndarray, seed: int | None, number: int) -> np.ndarray:
    return members if seed is None else epoch_order(members, seed, number)
