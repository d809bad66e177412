from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pykinml_func.training.losses import energy_loss, force_loss, weighted_loss
from pykinml_func.types import Batch, Structures

MakeBatch = Callable[..., Batch]


def predicted(batch: Batch, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random energies and forces, padding included."""
    generator = torch.Generator().manual_seed(seed)
    energies = torch.randn(batch.energies.shape, generator=generator, dtype=torch.float64)
    assert batch.forces is not None
    return energies, torch.randn(batch.forces.shape, generator=generator, dtype=torch.float64)


def test_energy_loss_is_the_mean_squared_error(make_batch: MakeBatch, labelled: Structures) -> None:
    batch = make_batch()
    energies, _ = predicted(batch)
    expected = np.mean([(energies[m].item() - labelled.energies[m, 0]) ** 2 for m in range(labelled.n_structures)])
    assert energy_loss(batch, energies).item() == pytest.approx(expected, rel=1e-12)


def test_force_loss_is_the_mean_over_structures_of_their_mean(make_batch: MakeBatch) -> None:
    """Not the mean over all components: a small structure weighs as much as a large one."""
    batch = make_batch()
    _, forces = predicted(batch)
    assert batch.forces is not None
    errors = (forces - batch.forces).numpy()
    owner = batch.structure_index.numpy()
    structures = range(len(batch.energies))
    means = [np.mean([e * e for atom in errors[owner == m] for e in atom]) for m in structures]
    everything = np.concatenate([errors[owner == m].ravel() for m in structures])
    assert force_loss(batch, forces).item() == pytest.approx(np.mean(means), rel=1e-12)
    assert np.mean(means) != pytest.approx(np.mean(everything**2), rel=1e-3)


def test_padding_has_no_influence(make_batch: MakeBatch) -> None:
    exact, padded = make_batch([1, 2]), make_batch([1, 2], batch_size=5)
    energies, forces = predicted(exact)
    generator = torch.Generator().manual_seed(9)
    wide = torch.randn(padded.energies.shape, generator=generator, dtype=torch.float64)
    wide[:2] = energies
    assert exact.forces is not None and padded.forces is not None
    spread = torch.randn(padded.forces.shape, generator=generator, dtype=torch.float64)
    spread[padded.structure_index < 2] = forces[exact.structure_index < 2]
    assert len(padded.energies) == 5 and (padded.structure_index == 5).any() and (exact.structure_index == 2).any()
    torch.testing.assert_close(energy_loss(padded, wide), energy_loss(exact, energies), rtol=1e-13, atol=0)
    torch.testing.assert_close(force_loss(padded, spread), force_loss(exact, forces), rtol=1e-13, atol=0)


def test_weighting_is_pykinmls() -> None:
    energy, force = torch.tensor(3.0), torch.tensor(5.0)
    assert weighted_loss(energy, force, 0.3).item() == pytest.approx(0.7 * 3 + 0.3 * 5)


def test_a_force_loss_needs_forces(make_batch: MakeBatch) -> None:
    batch = make_batch()
    with pytest.raises(TypeError, match="forces"):
        force_loss(batch._replace(forces=None), predicted(batch)[1])
