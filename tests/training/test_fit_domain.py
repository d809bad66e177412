"""The domain of training structures: they lie in it, molecules that fall apart or are of new kinds leave it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.formats.database import read_databases
from pykinml_func.potential.domain import structure_distances
from pykinml_func.training import domain as domain_module
from pykinml_func.training.domain import fit_domain
from pykinml_func.types import Domain, Structures

AEV = AEVConfig(elements=("C", "H", "O"))
MODEL = ModelConfig(aev=AEV)
METHANE = np.array([[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [0.63, -0.63, -0.63], [-0.63, 0.63, -0.63]])
NUMBERS = np.array([6, 1, 1, 1, 1])
MakeSource = Callable[..., Source]


def of_geometries(numbers: np.ndarray, geometries: np.ndarray) -> Structures:
    """numbers: (n,); geometries: (M,n,3) Å."""
    count, n = geometries.shape[:2]
    labels, names = np.zeros((count, 1)), np.array(["made/1"] * count)
    forces, offsets = np.zeros((count * n, 1, 3)), np.arange(count + 1) * n
    positions = geometries.reshape(-1, 3)
    return Structures(
        np.tile(numbers, count), positions, offsets, np.array([1]), labels, forces, names, names, np.zeros(count)
    )


def shaken_methane(count: int, seed: int) -> Structures:
    draws = np.random.default_rng(seed).normal(0, 0.05, (count, 5, 3))
    return of_geometries(NUMBERS, METHANE + draws)


def packer_of(
    source: Source, batch_size: int = 16, dtype: torch.dtype = torch.float64, **more: tuple[int, int]
) -> Packer:
    return Packer(source, np.arange(len(source.energies)), batch_size, dtype, torch.device("cpu"), **more)


def distances(domain: Domain, source: Source, batch_size: int = 7) -> np.ndarray:
    packer = packer_of(source, batch_size)
    found = [
        structure_distances(
            domain, batch.features.aevs_and_pullback(AEV)[0], batch.structure_index, len(batch.energies)
        )
        for batch in packer.batches(packer.members)
    ]
    return torch.cat(found).numpy()[: len(source.energies)]


@pytest.fixture(scope="module")
def methane(make_source: MakeSource) -> Source:
    return make_source(shaken_methane(60, seed=0), AEV, "positions")


@pytest.fixture(scope="module")
def domain(methane: Source) -> Domain:
    return fit_domain(MODEL, packer_of(methane))


def test_what_was_trained_on_lies_within_and_the_farthest_at_one(methane: Source, domain: Domain) -> None:
    found = distances(domain, methane)
    assert 0.999 < found.max() <= 1
    assert domain.farthest[2] == 0  # no oxygen
    assert all(tensor.dtype == torch.float32 for tensor in domain)


def test_more_of_the_same_lies_mostly_within(make_source: MakeSource, domain: Domain) -> None:
    others = make_source(shaken_methane(200, seed=1), AEV, "positions")
    assert (distances(domain, others) < 1).mean() > 0.8


def test_a_molecule_that_falls_apart_leaves_the_more_the_farther(make_source: MakeSource, domain: Domain) -> None:
    stretched = np.repeat(METHANE[None], 5, axis=0)
    stretched[:, 1] *= np.array([1.0, 1.3, 1.6, 2.0, 3.0])[:, None]
    found = distances(domain, make_source(of_geometries(NUMBERS, stretched), AEV, "positions"))
    assert found[0] < 1 < found[1]
    assert (np.diff(found) > 0).all()


def test_a_molecule_that_is_squeezed_leaves(make_source: MakeSource, domain: Domain) -> None:
    squeezed = make_source(of_geometries(NUMBERS, 0.8 * METHANE[None]), AEV, "positions")
    assert distances(domain, squeezed) > 2


def test_turning_and_renumbering_change_nothing(make_source: MakeSource, domain: Domain) -> None:
    structures = shaken_methane(1, seed=3)
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    order = np.array([3, 1, 0, 4, 2])
    moved = of_geometries(NUMBERS[order], (structures.positions @ turn + 5)[None, order])
    one, other = (distances(domain, make_source(each, AEV, "positions")) for each in (structures, moved))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_new_neighbours_are_far_though_the_data_never_spread_that_way(make_source: MakeSource) -> None:
    water = np.array([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    draws = np.random.default_rng(0).normal(0, 0.05, (60, 3, 3))
    source = make_source(of_geometries(np.array([8, 1, 1]), water + draws), AEV, "positions")
    peroxide = np.array([[0, 0.72, 0], [0, -0.72, 0], [0.9, 0.9, 0.3], [-0.9, -0.9, 0.3]])
    found = distances(
        fit_domain(MODEL, packer_of(source)),
        make_source(of_geometries(np.array([8, 8, 1, 1]), peroxide[None]), AEV, "positions"),
    )
    assert found > 3


def test_atoms_that_are_all_alike_lie_within(make_source: MakeSource) -> None:
    alone = make_source(of_geometries(np.array([8]), np.zeros((3, 1, 3))), AEV, "positions")
    domain = fit_domain(MODEL, packer_of(alone))
    assert (distances(domain, alone) < 1e-3).all()
    pair = of_geometries(np.array([8, 8]), np.array([[[0.0, 0, 0], [0, 0, 1.2]]]))
    assert distances(domain, make_source(pair, AEV, "positions")) > 10


@pytest.mark.parametrize("contents", ["aevs", "jacobians"])
def test_every_kind_of_features_gives_the_same(make_source: MakeSource, domain: Domain, contents: str) -> None:
    source = make_source(shaken_methane(60, seed=0), AEV, contents)
    assert_alike(fit_domain(MODEL, packer_of(source, batch_size=60)), domain, 1e-4)


def test_every_rank_sees_all_structures(methane: Source, domain: Domain) -> None:
    assert_alike(fit_domain(MODEL, packer_of(methane, share=(1, 2))), domain, 1e-6)


def test_single_precision_hardly_differs(methane: Source, domain: Domain) -> None:
    single = fit_domain(MODEL, packer_of(methane, dtype=torch.float32))
    np.testing.assert_allclose(distances(single, methane), distances(domain, methane), rtol=1e-3)


def test_of_a_large_set_some_tell_the_spread_and_all_the_farthest(
    methane: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evenly spread ones, whatever the order of a split."""
    third = Packer(methane, np.arange(0, 60, 3), 16, torch.float64, torch.device("cpu"))
    expected = fit_domain(MODEL, third)
    monkeypatch.setattr(domain_module, "_MOST_STRUCTURES", 20)
    shuffled = Packer(methane, np.random.default_rng(0).permutation(60), 16, torch.float64, torch.device("cpu"))
    found = fit_domain(MODEL, shuffled)
    torch.testing.assert_close(found.mean, expected.mean)
    assert distances(expected, methane).max() > 1.01
    assert 0.999 < distances(found, methane).max() <= 1


def test_real_molecules_of_other_kinds_lie_outside(make_source: MakeSource) -> None:
    """Of the bundled data: held-out structures of the same molecules within, two molecules that are left out beyond."""
    folder = Path(__file__).parents[2] / "examples" / "data"
    structures = read_databases(sorted(folder.glob("*.db")), [1])
    left_out = np.array([str(name).startswith(("CH3O", "CH4O")) for name in structures.ids])
    known = np.random.default_rng(0).permutation(np.flatnonzero(~left_out))
    source = make_source(structures, AEV, "aevs")
    found = distances(fit_domain(MODEL, Packer(source, known[80:], 50, torch.float64, torch.device("cpu"))), source)
    assert (found[known[:80]] < 1).mean() > 0.9
    assert (found[left_out] > 1).mean() > 0.98


def assert_alike(one: Domain, other: Domain, tolerance: float) -> None:
    """In what they say: a direction may point either way."""
    torch.testing.assert_close(one.mean, other.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one.farthest, other.farthest, rtol=tolerance, atol=tolerance)
