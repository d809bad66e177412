"""The batches of each epoch: reshuffled from the seed, or in PyKinML's fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pykinml_func.data.batching import Packer
from pykinml_func.types import Batch


def epoch_order(members: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The order of `members` (k,) in an epoch; any epoch's can be had without those before it."""
    return np.random.default_rng([seed, epoch]).permutation(members)


class Loader(NamedTuple):
    """Batches of a packer's members."""

    packer: Packer
    shuffle_seed: int | None
    """None keeps the members' order in every epoch"""

    @property
    def n_batches(self) -> int:
        """Batches an epoch."""
        return -(-len(self.packer.members) // self.packer.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`."""
        members = self.packer.members
        order = members if self.shuffle_seed is None else epoch_order(members, self.shuffle_seed, number)
        return self.packer.batches(order)
