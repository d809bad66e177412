from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pykinml_func.training.metrics import (
    add_sums,
    error_sums,
    level_prefixes,
    stack_sums,
    step_sums,
    summary,
    unstack_sums,
)
from pykinml_func.types import Batch, ErrorSums, StepSums, Structures

MakeBatch = Callable[..., Batch]
KCAL = 23.060547830619
"""kcal/mol in an eV: 96485.33212331 J/C over 4184 J/kcal (CODATA 2018; ASE's, of 2014, is within 1e-8)"""


def errors_of(batch: Batch, seed: int) -> tuple[np.ndarray, np.ndarray, StepSums]:
    """The true errors (m,) and (a,3) of random predictions of one level, and their sums."""
    generator = torch.Generator().manual_seed(seed)
    assert batch.forces is not None
    energies = batch.energies + torch.randn(batch.energies.shape, generator=generator, dtype=torch.float64)
    forces = batch.forces + torch.randn(batch.forces.shape, generator=generator, dtype=torch.float64)
    real = batch.energy_mask > 0
    atoms = batch.structure_index < len(batch.energies)
    found = step_sums(batch, energies, forces)
    return (energies - batch.energies)[real].numpy(), (forces - batch.forces)[atoms][:, 0].numpy(), found


def slow_summary(kind: str, errors: np.ndarray) -> dict[str, float]:
    """Errors (...,) in eV or eV/Å, one by one."""
    sizes = [KCAL * abs(error) for error in errors.ravel().tolist()]
    return {
        f"{kind}_mae": sum(sizes) / len(sizes),
        f"{kind}_rmse": math.sqrt(sum(size * size for size in sizes) / len(sizes)),
        f"{kind}_max": max(sizes),
    }


@pytest.mark.parametrize("batch_size", [5, 8])
def test_summary_is_mae_rmse_and_maximum_in_kcal(make_batch: MakeBatch, batch_size: int) -> None:
    energy_errors, force_errors, sums = errors_of(make_batch(batch_size=batch_size), seed=1)
    assert len(energy_errors) == 5 and force_errors.shape == (4 + 5 + 4 + 6 + 5, 3)
    found = summary(sums)
    expected = slow_summary("energy", energy_errors) | slow_summary("force", force_errors)
    assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("batch_size", [5, 8])
def test_each_level_has_errors_of_its_own_labels(
    make_batch: MakeBatch, chain_labelled: Structures, batch_size: int
) -> None:
    """The highest level's have plain names. Level 0 lacks structure 1, level 3 structure 2 and the forces of 3."""
    batch = make_batch(batch_size=batch_size, structures=chain_labelled)
    generator = torch.Generator().manual_seed(7)
    assert batch.forces is not None
    energies = batch.energies + torch.randn(batch.energies.shape, generator=generator, dtype=torch.float64)
    forces = batch.forces + torch.randn(batch.forces.shape, generator=generator, dtype=torch.float64)
    owner, expected = batch.structure_index.numpy(), {}
    lacking = {"level_0_": ([1], [1]), "": ([2], [2, 3])}
    for level, (prefix, (no_energy, no_forces)) in enumerate(lacking.items()):
        errors = (energies - batch.energies)[:, level].numpy()
        atoms = ~np.isin(owner, [*no_forces, batch_size])
        expected |= slow_summary(f"{prefix}energy", errors[[m for m in range(5) if m not in no_energy]])
        expected |= slow_summary(f"{prefix}force", (forces - batch.forces)[:, :, level].numpy()[atoms])
    assert summary(step_sums(batch, energies, forces), (0, 3)) == pytest.approx(expected, rel=1e-7)


def test_the_highest_level_has_plain_names() -> None:
    """The highest is the last of the chain, whatever its number."""
    assert level_prefixes([3]) == [""]
    assert level_prefixes((5, 0, 2)) == ["level_5_", "level_0_", ""]


def test_an_error_where_there_is_no_label_changes_nothing(make_batch: MakeBatch, chain_labelled: Structures) -> None:
    batch = make_batch(structures=chain_labelled)
    assert batch.forces is not None and batch.component_weights is not None
    energies = batch.energies + torch.where(batch.energy_mask > 0, 1.0, 1e6)
    forces = batch.forces + torch.where(batch.component_weights > 0, 2.0, 1e6).unsqueeze(-1)
    found = summary(step_sums(batch, energies, forces), (0, 3))
    for prefix in ("", "level_0_"):
        for name in ("mae", "rmse", "max"):
            assert found[f"{prefix}energy_{name}"] == pytest.approx(KCAL, rel=1e-7)
            assert found[f"{prefix}force_{name}"] == pytest.approx(2 * KCAL, rel=1e-7)


def test_sums_of_batches_are_those_of_one(make_batch: MakeBatch) -> None:
    parts = [make_batch([0, 1, 2], batch_size=3), make_batch([3, 4], batch_size=3)]
    results = [errors_of(batch, seed) for seed, batch in enumerate(parts)]
    errors = [np.concatenate([result[kind] for result in results]).reshape(-1, 1) for kind in (0, 1)]
    energy_errors, force_errors = map(torch.from_numpy, errors)
    one = StepSums(*(error_sums(errors, torch.ones_like(errors)) for errors in (energy_errors, force_errors)))
    assert summary(add_sums(result[2] for result in results)) == pytest.approx(summary(one), rel=1e-12)


def test_energies_alone(make_batch: MakeBatch) -> None:
    batch = make_batch(contents="aevs")
    sums = step_sums(batch, batch.energies + 1)
    assert sums.force is None
    assert summary(add_sums([sums, sums])) == pytest.approx(
        {"energy_mae": KCAL, "energy_rmse": KCAL, "energy_max": KCAL}, rel=1e-7
    )


@pytest.mark.parametrize("forces", [False, True])
def test_unstacking_inverts_stacking(forces: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [[ErrorSums(*torch.rand(4, 2, generator=generator)) for _ in "ef"] for _ in range(3)]
    sums = [StepSums(energy, force if forces else None) for energy, force in drawn]
    for found, expected in zip(unstack_sums(stack_sums(sums)), sums, strict=True):
        assert (found.force is None) == (not forces)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine is theirs is None or all(map(torch.equal, mine, theirs))


def test_single_precision_errors_add_up_in_double() -> None:
    sums = error_sums(torch.ones(3, 2, dtype=torch.float32), torch.ones(3, 2, dtype=torch.float32))
    assert {value.dtype for value in sums} == {torch.float64} and {value.shape for value in sums} == {(2,)}


def test_a_level_without_labels_has_no_errors() -> None:
    ones = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    sums = error_sums(ones, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    found = summary(StepSums(sums, None), (0, 1))
    assert found["level_0_energy_max"] == pytest.approx(0.5 * KCAL, rel=1e-7)
    assert all(math.isnan(found[f"energy_{name}"]) for name in ("mae", "rmse", "max"))
