from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.func import grad

from pykinml_func.training.losses import (
    energy_loss,
    force_loss,
    learned_loss,
    weighted_loss,
)
from pykinml_func.types import Batch, Structures

MakeBatch = Callable[..., Batch]


def predicted(batch: Batch, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random energies and forces, padding included."""
    generator = torch.Generator().manual_seed(seed)
    energies = torch.randn(batch.energies.shape, generator=generator, dtype=torch.float64)
    assert batch.forces is not None
    return energies, torch.randn(batch.forces.shape, generator=generator, dtype=torch.float64)


def slow_losses(structures: Structures, batch: Batch, energies: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """(2,L) energy and force loss of each level: loops over levels, structures and atoms that have labels."""
    found = []
    for level in range(structures.energies.shape[1]):
        squares, means = [], []
        for m, (start, end) in enumerate(pairwise(structures.offsets)):
            if math.isfinite(structures.energies[m, level]):
                squares.append((energies[m, level] - structures.energies[m, level]) ** 2)
            errors = []
            for species, number in enumerate((6, 1)):
                slots = np.flatnonzero(batch.structure_index[species].numpy() == m)
                atoms = [atom for atom in range(start, end) if structures.numbers[atom] == number]
                for slot, atom in zip(slots, atoms, strict=True):
                    errors += (forces[species, slot, level] - structures.forces[atom, level]).tolist()
            if all(map(math.isfinite, errors)):
                means.append(sum(error**2 for error in errors) / len(errors))
        found.append((sum(squares) / len(squares), sum(means) / len(means)))
    return np.array(found).T


def test_energy_loss_is_the_mean_squared_error(make_batch: MakeBatch, labelled: Structures) -> None:
    batch = make_batch()
    energies, _ = predicted(batch)
    expected = np.mean((energies.numpy() - labelled.energies) ** 2)
    assert energy_loss(batch, energies).tolist() == pytest.approx([expected], rel=1e-12)


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
    assert force_loss(batch, forces).tolist() == pytest.approx([np.mean(means)], rel=1e-12)
    assert np.mean(means) != pytest.approx(np.mean(everything**2), rel=1e-3)


@pytest.mark.parametrize("batch_size", [5, 8])
def test_missing_labels_and_padding_are_left_out_of_every_level(
    make_batch: MakeBatch, chain_labelled: Structures, batch_size: int
) -> None:
    batch = make_batch(batch_size=batch_size, structures=chain_labelled)
    energies, forces = predicted(batch)
    expected = slow_losses(chain_labelled, batch, energies.numpy(), forces.numpy())
    np.testing.assert_allclose(energy_loss(batch, energies).numpy(), expected[0], rtol=1e-12)
    np.testing.assert_allclose(force_loss(batch, forces).numpy(), expected[1], rtol=1e-12)
    assert batch.n_energies.tolist() == [4, 4]
    assert batch.n_forces is not None and batch.n_forces.tolist() == [4, 3]


def test_a_missing_label_has_no_influence_whatever_stands_in_its_place(
    make_batch: MakeBatch, chain_labelled: Structures
) -> None:
    """NaN in the source is 0 in the batch; 10⁶ there gives the same losses and the same gradients, bit for bit."""
    batch = make_batch(structures=chain_labelled)
    assert batch.forces is not None and batch.component_weights is not None
    unlabelled = (batch.component_weights == 0).unsqueeze(-1).expand_as(batch.forces)
    other = batch._replace(
        energies=torch.where(batch.energy_mask == 0, 1e6, batch.energies),
        forces=torch.where(unlabelled, 1e6, batch.forces),
    )
    assert not torch.equal(other.energies, batch.energies) and not torch.equal(other.forces, batch.forces)

    def total(arguments: tuple[torch.Tensor, torch.Tensor], batch: Batch) -> torch.Tensor:
        return energy_loss(batch, arguments[0]).sum() + force_loss(batch, arguments[1]).sum()

    arguments = predicted(batch)
    assert torch.equal(total(arguments, batch), total(arguments, other))
    gradients = grad(total)(arguments, batch)
    for one, changed in zip(gradients, grad(total)(arguments, other), strict=True):
        assert torch.equal(one, changed)
    assert torch.equal(gradients[0] == 0, batch.energy_mask == 0)
    assert torch.equal(gradients[1] == 0, unlabelled)


def test_a_batch_without_labels_of_a_level_has_no_loss_there(make_batch: MakeBatch, chain_labelled: Structures) -> None:
    batch = make_batch([1], structures=chain_labelled)
    energies, forces = predicted(batch)
    losses = [*energy_loss(batch, energies).tolist(), *force_loss(batch, forces).tolist()]
    assert losses[0] == losses[2] == 0
    assert losses[1] > 0 and losses[3] > 0


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


def test_fixed_weighting_is_pykinmls_summed_over_levels() -> None:
    energy, force = torch.tensor([3.0, 4.0]), torch.tensor([5.0, 7.0])
    assert weighted_loss(energy, force, 0.3).item() == pytest.approx(0.7 * 3 + 0.3 * 5 + 0.7 * 4 + 0.3 * 7)


LOSSES = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)
LOG_VARIANCES = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
ALL = torch.tensor([True, True, True])


def test_learned_weighting_is_kendalls() -> None:
    expected = sum(math.exp(-s) * loss + s for s, loss in zip(LOG_VARIANCES.tolist(), LOSSES.tolist(), strict=True))
    assert learned_loss(LOSSES, ALL, LOG_VARIANCES).item() == pytest.approx(expected, rel=1e-14)
    start = learned_loss(LOSSES, ALL, torch.zeros(3, dtype=torch.float64))
    assert start.item() == pytest.approx(23.5, rel=1e-14)  # weights of 1


def test_the_gradient_of_a_learned_weight() -> None:
    """d/ds = 1 - exp(-s) L, so that each s settles where its variance is the loss."""
    found = grad(learned_loss, argnums=2)(LOSSES, ALL, LOG_VARIANCES)
    torch.testing.assert_close(found, 1 - torch.exp(-LOG_VARIANCES) * LOSSES, rtol=1e-14, atol=0)
    torch.testing.assert_close(grad(learned_loss)(LOSSES, ALL, LOG_VARIANCES), torch.exp(-LOG_VARIANCES))
    settled = grad(learned_loss, argnums=2)(LOSSES, ALL, LOSSES.log())
    torch.testing.assert_close(settled, torch.zeros_like(settled), rtol=0, atol=1e-14)


def test_a_task_without_labels_leaves_its_weight_alone() -> None:
    labelled = torch.tensor([True, False, True])
    losses = LOSSES * labelled
    expected = math.exp(1) * 0.5 - 1 + math.exp(-2) * 20 + 2
    assert learned_loss(losses, labelled, LOG_VARIANCES).item() == pytest.approx(expected, rel=1e-14)
    assert (grad(learned_loss, argnums=2)(losses, labelled, LOG_VARIANCES) == 0).tolist() == [False, True, False]


def test_the_losses_of_all_shares_are_those_of_the_whole_batch(
    make_batch: MakeBatch, chain_labelled: Structures
) -> None:
    """Of seven ranks two have nothing."""
    whole = make_batch(structures=chain_labelled)
    energies, forces = predicted(whole)
    expected = torch.cat([energy_loss(whole, energies), force_loss(whole, forces)])
    found, learned = torch.zeros_like(expected), torch.zeros((), dtype=torch.float64)
    for rank in range(7):
        share, is_there = make_batch(structures=chain_labelled, share=(rank, 7)), rank < 5
        assert share.forces is not None and share.share == (1 / 5 if is_there else 0)
        own = torch.ones_like(share.forces)
        if is_there:  # one structure, in slots of its own
            own[share.structure_index == 0] = forces[whole.structure_index == rank]
        losses = torch.cat([energy_loss(share, energies[[rank if is_there else 0]]), force_loss(share, own)])
        found += losses
        learned += learned_loss(losses, torch.ones(4), LOG_VARIANCES[[0, 1, 2, 1]], share.share)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    together = learned_loss(expected, torch.ones(4), LOG_VARIANCES[[0, 1, 2, 1]])
    torch.testing.assert_close(learned, together, rtol=1e-13, atol=0)


def test_a_force_loss_needs_forces(make_batch: MakeBatch) -> None:
    batch = make_batch()
    with pytest.raises(TypeError, match="forces"):
        force_loss(batch._replace(forces=None), predicted(batch)[1])
