from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pykinml_func.training.metrics import add_sums, error_sums, step_sums, summary
from pykinml_func.types import Batch, ErrorSums, StepSums

MakeBatch = Callable[..., Batch]
KCAL = 23.060547830619
"""kcal/mol in an eV: 96485.33212331 J/C over 4184 J/kcal (CODATA 2018; ASE's, of 2014, is within 1e-8)"""


def errors_of(batch: Batch, seed: int) -> tuple[np.ndarray, np.ndarray, StepSums]:
    """The true errors (m,) and (a,3) of random predictions, and their sums."""
    generator = torch.Generator().manual_seed(seed)
    assert batch.forces is not None
    energies = batch.energies + torch.randn(batch.energies.shape, generator=generator, dtype=torch.float64)
    forces = batch.forces + torch.randn(batch.forces.shape, generator=generator, dtype=torch.float64)
    real = batch.structure_mask > 0
    atoms = batch.structure_index < len(batch.energies)
    found = step_sums(batch, energies, forces)
    return (energies - batch.energies)[real].numpy(), (forces - batch.forces)[atoms].numpy(), found


@pytest.mark.parametrize("batch_size", [5, 8])
def test_summary_is_mae_rmse_and_maximum_in_kcal(make_batch: MakeBatch, batch_size: int) -> None:
    energy_errors, force_errors, sums = errors_of(make_batch(batch_size=batch_size), seed=1)
    assert len(energy_errors) == 5 and force_errors.shape == (4 + 5 + 4 + 6 + 5, 3)
    found = summary(sums)
    expected = {}
    for kind, errors in (("energy", energy_errors), ("force", force_errors.ravel())):
        sizes = [KCAL * abs(error) for error in errors]
        expected[f"{kind}_mae"] = sum(sizes) / len(sizes)
        expected[f"{kind}_rmse"] = math.sqrt(sum(size * size for size in sizes) / len(sizes))
        expected[f"{kind}_max"] = max(sizes)
    assert found == pytest.approx(expected, rel=1e-7)


def test_sums_of_batches_are_those_of_one(make_batch: MakeBatch) -> None:
    parts = [make_batch([0, 1, 2], batch_size=3), make_batch([3, 4], batch_size=3)]
    results = [errors_of(batch, seed) for seed, batch in enumerate(parts)]
    energy_errors = torch.from_numpy(np.concatenate([result[0] for result in results]))
    force_errors = torch.from_numpy(np.concatenate([result[1] for result in results]))
    one = StepSums(*(error_sums(errors, torch.ones_like(errors)) for errors in (energy_errors, force_errors)))
    assert summary(add_sums(result[2] for result in results)) == pytest.approx(summary(one), rel=1e-12)


def test_energies_alone(make_batch: MakeBatch) -> None:
    batch = make_batch(contents="aevs")
    sums = step_sums(batch, batch.energies + 1)
    assert sums.force is None
    assert summary(add_sums([sums, sums])) == pytest.approx(
        {"energy_mae": KCAL, "energy_rmse": KCAL, "energy_max": KCAL}, rel=1e-7
    )


def test_single_precision_errors_add_up_in_double() -> None:
    sums = error_sums(torch.ones(3, dtype=torch.float32), torch.ones(3, dtype=torch.float32))
    assert {value.dtype for value in sums} == {torch.float64}


def test_no_structure_has_no_mean() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    found = summary(StepSums(ErrorSums(zero, zero, zero, zero), None))
    assert math.isnan(found["energy_mae"]) and math.isnan(found["energy_rmse"])
