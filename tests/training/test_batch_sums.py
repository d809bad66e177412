"""The sums of a pass: as they were given, whatever their number and kinds."""

from __future__ import annotations

import pytest
import torch

from pykinml_func.training.batch_sums import BatchSums
from pykinml_func.types import ErrorSums, StepSums


def sums_of(number: float, forces: bool) -> StepSums:
    """Two levels; every figure another one."""
    energy, force = (
        ErrorSums(*(torch.tensor([number + k, number - k], dtype=torch.float64) for k in range(start, start + 4)))
        for start in (0, 4)
    )
    return StepSums(energy, force if forces else None)


@pytest.mark.parametrize("forces", [False, True])
def test_sums_come_back_side_by_side(forces: bool) -> None:
    given = [sums_of(10.0 * k, forces) for k in range(3)]
    kept = BatchSums(5)
    assert len(kept) == 0
    for each in given:
        kept.append(each)
    assert len(kept) == 3
    found = kept.stacked
    assert (found.force is not None) is forces
    for kind in ("energy", "force") if forces else ("energy",):
        for name in ErrorSums._fields:
            expected = torch.stack([getattr(getattr(each, kind), name) for each in given])
            assert torch.equal(getattr(getattr(found, kind), name), expected)
