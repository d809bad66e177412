"""Single-atom energies: exact where compositions determine them, of least norm where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pykinml_func.potential.self_energies import (
    add_self_energies,
    fit_level_self_energies,
    fit_self_energies,
    subtract_self_energies,
)

TRUE = torch.tensor([-1035.1, -15.6, -2041.3], dtype=torch.float64)
COUNTS = torch.tensor([[1, 4, 0], [2, 6, 1], [3, 4, 2], [0, 2, 1], [2, 6, 1]])
LEVELS = torch.stack([TRUE, TRUE + torch.tensor([-0.8, 0.3, -1.1]), TRUE + torch.tensor([-0.9, 0.2, -1.5])])
TOLERANCE = 1e-9  # eV, of self energies of 2e3 eV


def at_levels(present: list[list[int]]) -> torch.Tensor:
    """Exact energies (M,L) of COUNTS; `present` lists the structures that each level has."""
    energies = COUNTS.double() @ LEVELS.T
    missing = [[m not in level for level in present] for m in range(len(COUNTS))]
    return energies.masked_fill(torch.tensor(missing), torch.nan)


def test_exact_recovery():
    fit = fit_self_energies(COUNTS, COUNTS.double() @ TRUE)
    assert fit.rank == 3
    torch.testing.assert_close(fit.self_energies, TRUE, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("counts", "rank"),
    [
        ([[5, 5, 0]] * 7, 1),
        ([[1, 4, 0], [2, 6, 0], [3, 8, 0], [3, 8, 0]], 2),
        ([[1, 1, 2], [2, 2, 1], [3, 3, 0]], 2),
        ([[1, 4, 1], [2, 6, 1], [3, 8, 2], [3, 8, 2], [0, 3, 3]], 3),
    ],
    ids=["one composition", "an element absent", "elements tied", "full"],
)
def test_noisy_fits_are_least_squares_of_least_norm(counts: list[list[int]], rank: int):
    table = torch.tensor(counts)
    energies = table.double() @ TRUE + torch.from_numpy(np.random.default_rng(0).normal(size=len(counts)))
    fit = fit_self_energies(table, energies)
    assert fit.rank == rank
    expected = np.linalg.lstsq(table.double().numpy(), energies.numpy(), rcond=1e-10)[0]
    np.testing.assert_allclose(fit.self_energies, expected, rtol=0, atol=TOLERANCE)


def test_one_composition_shares_its_mean_evenly():
    fit = fit_self_energies(torch.tensor([[5, 5]] * 4), torch.tensor([-5260.0, -5261, -5263, -5264]))
    torch.testing.assert_close(fit.self_energies, torch.full((2,), -526.2, dtype=torch.float64), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "counts",
    [
        torch.tensor([[1000, 1], [3000, 2], [2000, 2]]),  # a polymer with one odd atom
        torch.tensor([[5, 5]] * 20000 + [[5, 4]]),  # one structure of 20001 tells C from H
    ],
    ids=["unlike counts", "unlike numbers of structures"],
)
def test_ill_scaled_counts_are_still_determined(counts: torch.Tensor):
    fit = fit_self_energies(counts, counts.double() @ TRUE[:2])
    assert fit.rank == 2
    # energies of 3e6 eV hold 5e-10 eV, and differences of compositions magnify that by up to 1e3
    torch.testing.assert_close(fit.self_energies, TRUE[:2], rtol=0, atol=1e-6)


def test_subtracting_and_adding_are_inverse_in_float64():
    energies = torch.tensor([-1100.25, -4203.5, -7250.125, -2073.0, -4200.5])
    counts = COUNTS.double()
    left = subtract_self_energies(TRUE, COUNTS, energies)
    assert left.dtype == torch.float64
    torch.testing.assert_close(left, energies.double() - counts @ TRUE, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(add_self_energies(TRUE, COUNTS, left), energies.double(), rtol=0, atol=TOLERANCE)


def test_levels_of_energies_at_once_are_each_level_alone():
    energies = COUNTS.double() @ LEVELS.T + 0.25
    left = subtract_self_energies(LEVELS, COUNTS, energies)
    torch.testing.assert_close(left, torch.full_like(energies, 0.25), rtol=0, atol=TOLERANCE)
    columns = [subtract_self_energies(LEVELS[level], COUNTS, energies[:, level]) for level in range(3)]
    torch.testing.assert_close(left, torch.stack(columns, dim=1), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(add_self_energies(LEVELS, COUNTS, left), energies, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "present",
    [[[0, 1, 2, 3, 4]] * 3, [[0, 1, 2], [1, 2, 3], [0, 2, 3]], [[0, 1, 2, 4], [0, 1, 2, 3, 4], [1, 2, 3]]],
    ids=["all", "three each", "unlike numbers"],
)
def test_levels_are_recovered_exactly_from_the_labels_they_have(present: list[list[int]]):
    fit = fit_level_self_energies(COUNTS, at_levels(present))
    assert fit.rank == 3
    torch.testing.assert_close(fit.self_energies, LEVELS, rtol=0, atol=TOLERANCE)


def test_one_level_is_fitted_as_ever():
    energies = COUNTS.double() @ TRUE + torch.from_numpy(np.random.default_rng(1).normal(size=5))
    fit, alone = fit_level_self_energies(COUNTS, energies.unsqueeze(1)), fit_self_energies(COUNTS, energies)
    torch.testing.assert_close(fit.self_energies, alone.self_energies.unsqueeze(0), rtol=0, atol=0)
    assert fit.rank == alone.rank


def test_what_an_upper_level_does_not_determine_stays_next_to_the_level_below():
    fit = fit_level_self_energies(COUNTS, at_levels([[0, 1, 2, 3], [1, 4], [1, 4]]))  # one formula, C2H6O, above
    assert fit.rank == 1, "the least of the levels'"
    formula = COUNTS[1].double()
    for level in (1, 2):
        assert (fit.self_energies[level] @ formula).item() == pytest.approx((LEVELS[level] @ formula).item(), abs=1e-9)
        step = fit.self_energies[level] - fit.self_energies[level - 1]
        # the least step that changes the formula's sum is along its counts
        expected = formula * (formula @ (LEVELS[level] - LEVELS[level - 1])) / (formula @ formula)
        torch.testing.assert_close(step, expected, rtol=0, atol=TOLERANCE)


def test_an_element_that_an_upper_level_lacks_keeps_the_self_energy_below():
    fit = fit_level_self_energies(
        torch.tensor([[1, 4, 0], [2, 6, 0], [3, 4, 2], [0, 2, 1]]),
        torch.tensor([[-1097.5, -1097.9], [-2163.8, -2164.9], [-7250.3, torch.nan], [-2072.5, torch.nan]]),
    )
    assert fit.rank == 2
    assert fit.self_energies[1, 2].item() == pytest.approx(fit.self_energies[0, 2].item(), abs=TOLERANCE)
    assert (fit.self_energies[1] - fit.self_energies[0]).abs()[:2].min() > 0.01
