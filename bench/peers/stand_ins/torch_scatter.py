"""torch_scatter has no wheel for this torch; PyKinML uses its sum of sorted rows, which is an index_add."""

from __future__ import annotations

from torch import Tensor


def segment_coo(src: Tensor, index: Tensor, dim_size: int, reduce: str) -> Tensor:
    """(dim_size,K): the rows of `src` (R,K) summed by `index` (R,). Raises ValueError for another reduction."""
    if reduce != "sum":
        raise ValueError(f"the stand-in for torch_scatter only sums, got {reduce!r}")
    return src.new_zeros(dim_size, *src.shape[1:]).index_add(0, index, src)
