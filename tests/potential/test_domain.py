"""Distances from the domain of a model: the equation, elements without atoms, padding, precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pykinml_func.potential.domain import atom_distances, squared_distance, structure_distances
from pykinml_func.types import Domain

S, N, D, K = 3, 4, 6, 2


@pytest.fixture
def domain() -> Domain:
    """The last element had no atoms."""
    generator = torch.Generator().manual_seed(2)
    mean, whitener = torch.rand(S, D, generator=generator), torch.randn(S, D, K, generator=generator)
    farthest = torch.tensor([2.0, 5.0, 0.0])
    return Domain(mean, whitener, farthest)


@pytest.fixture
def aevs() -> torch.Tensor:
    return torch.rand(S, N, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_is_the_length_of_the_whitened_offset_over_the_farthest(domain: Domain, aevs: torch.Tensor) -> None:
    found = atom_distances(domain, aevs)
    for s in range(2):
        for n in range(N):
            white = (aevs[s, n] - domain.mean[s]).numpy() @ domain.whitener[s].numpy()
            assert found[s, n].item() == pytest.approx(np.linalg.norm(white) / domain.farthest[s].item(), rel=1e-5)


def test_an_element_without_atoms_is_infinitely_far(domain: Domain, aevs: torch.Tensor) -> None:
    nothing_seen = domain._replace(mean=torch.zeros(S, D), whitener=torch.zeros(S, D, K))
    for found in (atom_distances(domain, aevs), atom_distances(nothing_seen, torch.zeros_like(aevs))):
        assert found[2].isinf().all()
        assert found[:2].isfinite().all()


def test_the_difference_is_taken_in_the_precision_of_the_aevs(domain: Domain) -> None:
    aevs = domain.mean.double().unsqueeze(1) + 1e-9
    expected = 1e-9 * domain.whitener.sum(dim=1).norm(dim=1) / domain.farthest
    torch.testing.assert_close(atom_distances(domain, aevs)[:2, 0], expected[:2], rtol=1e-5, atol=0)


def test_a_structure_is_as_far_as_its_farthest_atom(domain: Domain, aevs: torch.Tensor) -> None:
    index = torch.tensor([[0, 1, 1, 2], [2, 0, 2, 2], [2, 2, 2, 2]])
    aevs[index == 2] = 1e6  # padding
    by_atom, found = atom_distances(domain, aevs), structure_distances(domain, aevs, index, 2)
    assert found.tolist() == [max(by_atom[0, 0], by_atom[1, 1]), max(by_atom[0, 1], by_atom[0, 2])]


@pytest.mark.parametrize("places", [[[0, 0], [1, 1], [1, 3]], [[0, 2]], [[1, 0], [2, 0]]])
def test_the_square_for_one_structure_is_the_same(domain: Domain, aevs: torch.Tensor, places: list[list[int]]) -> None:
    mask = torch.zeros(S, N, dtype=torch.float64)
    mask[tuple(torch.tensor(places).T)] = 1
    expected = structure_distances(domain, aevs, (mask == 0).long(), 1).item()
    found = squared_distance(domain, mask, aevs * mask.unsqueeze(2)).sqrt().item()
    assert found == pytest.approx(expected, rel=1e-5)
