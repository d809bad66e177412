"""The sums over errors of the batches of a pass, kept until they are added up.

# L fidelity levels, k batches so far
"""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_flatten, tree_structure, tree_unflatten

from pykinml_func.types import StepSums


class BatchSums:
    """Each batch's sums are a row of one tensor.

    As tensors of their own, which stay while the large ones of the steps come and go, they would break up the heap: a
    batch of 500 structures would cost some 4 MB.
    """

    def __init__(self, n_batches: int) -> None:
        """n_batches: of the whole pass."""
        self._n_batches, self._number = n_batches, 0
        self._rows, self._structure = torch.empty(0), tree_structure(None)

    def __len__(self) -> int:
        """Batches so far."""
        return self._number

    def append(self, sums: StepSums) -> None:
        """Those of one more batch."""
        leaves, self._structure = tree_flatten(sums)
        row = torch.stack([leaf for leaf in leaves if leaf is not None])
        if self._number == 0:
            self._rows = row.new_empty(self._n_batches, *row.shape)
        self._rows[self._number] = row
        self._number += 1

    @property
    def stacked(self) -> StepSums:
        """Side by side: (k,L) each."""
        columns = self._rows[: self._number].unbind(dim=1)
        absent = [None] * (self._structure.num_leaves - len(columns))
        found: StepSums = tree_unflatten([*columns, *absent], self._structure)
        return found
