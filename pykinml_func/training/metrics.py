"""Errors as sums that add up over batches, and the means that people read.

# M structures, S species, N atoms a species (padded)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pykinml_func.types import Batch, ErrorSums, StepSums
from pykinml_func.units import KCAL_PER_MOL


def error_sums(errors: Tensor, mask: Tensor) -> ErrorSums:
    """Sums of |error|, error² and count, and the largest |error|, where `mask` is 1; both of one shape."""
    size = (errors * mask).abs()
    return ErrorSums(size.sum().double(), (size * size).sum().double(), size.max().double(), mask.sum().double())


def step_sums(batch: Batch, energies: Tensor, forces: Tensor | None = None) -> StepSums:
    """Sums over a batch's errors. energies: (M,) eV; forces: (S,N,3) eV/Å."""
    energy = error_sums(energies - batch.energies, batch.structure_mask)
    if forces is None or batch.forces is None or batch.component_weights is None:
        return StepSums(energy, None)
    mask = (batch.component_weights > 0).to(forces.dtype).unsqueeze(-1).expand_as(forces)
    return StepSums(energy, error_sums(forces - batch.forces, mask))


def add_sums(sums: Iterable[StepSums]) -> StepSums:
    """The sums of several batches as one's."""
    steps = list(sums)
    forces = [step.force for step in steps if step.force is not None]
    return StepSums(_add([step.energy for step in steps]), _add(forces) if forces else None)


def _add(sums: list[ErrorSums]) -> ErrorSums:
    absolute, squared, largest, number = (torch.stack(column) for column in zip(*sums, strict=True))
    return ErrorSums(absolute.sum(), squared.sum(), largest.max(), number.sum())


def summary(sums: StepSums) -> dict[str, float]:
    """MAE, RMSE and largest error in kcal/mol, and with prefix `force_` in kcal/mol/Å; NaN over no structure."""
    found = {}
    for prefix, errors in (("energy", sums.energy), ("force", sums.force)):
        if errors is not None:
            count = errors.number.item() or float("nan")
            found[f"{prefix}_mae"] = KCAL_PER_MOL * errors.absolute.item() / count
            found[f"{prefix}_rmse"] = KCAL_PER_MOL * (errors.squared.item() / count) ** 0.5
            found[f"{prefix}_max"] = KCAL_PER_MOL * errors.largest.item()
    return found
