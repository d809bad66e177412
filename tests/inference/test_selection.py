"""Selection: unsure and diverse, as the algorithm says, the same each time; what cannot be selected from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ConfigError, ModelError
from pykinml_func.inference import selection
from pykinml_func.inference.predictor import Predictor
from pykinml_func.inference.selection import force_variances, largest_clusters, select
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.types import Ensemble, Params

Model = tuple[ModelConfig, Params]


@pytest.fixture(scope="module")
def ensemble(model: Model) -> Ensemble:
    config, _ = model
    members = [init_params(config, torch.Generator().manual_seed(seed)) for seed in range(3)]
    return Ensemble(config, stack_members(members))


def shaken(name: str, count: int, seed: int) -> list[Atoms]:
    generator, images = np.random.default_rng(seed), [molecule(name) for _ in range(count)]
    for atoms in images:
        atoms.positions += generator.normal(0, 0.08, atoms.positions.shape)
    return images


@pytest.fixture
def pool() -> list[Atoms]:
    return shaken("CH4", 30, 0) + shaken("H2O", 10, 1) + shaken("CH3CH2OH", 10, 2)


def plain_clusters(features: np.ndarray, weights: np.ndarray, number: int) -> list[int]:
    """The algorithm's words, one at a time."""
    chosen = [int(weights.argmax())]
    while len(chosen) < number:
        squared = ((features[:, None] - features[None, chosen]) ** 2).sum(axis=2)
        owner, nearest = squared.argmin(axis=1), weights * squared.min(axis=1)
        sums = [nearest[owner == cluster].sum() for cluster in range(len(chosen))]
        chosen.append(int(np.where(owner == np.argmax(sums), nearest, -1).argmax()))
    return chosen


def test_next_is_the_farthest_of_the_largest_cluster() -> None:
    generator = np.random.default_rng(0)
    features, weights = generator.normal(size=(40, 3)), generator.uniform(0.1, 1, 40)
    found = largest_clusters(torch.from_numpy(features), torch.from_numpy(weights), 15)
    assert found.tolist() == plain_clusters(features, weights, 15)


def test_of_structures_in_one_place_the_most_unsure_alone_is_chosen() -> None:
    features = torch.tensor([[0.0], [1e-4], [1.0], [0.0], [3.0]])
    weights = torch.tensor([1.0, 2.0, 1.0, 5.0, 1.0], dtype=torch.float64)
    assert largest_clusters(features, weights, 5).tolist() == [3, 4, 2]


def test_structures_of_which_members_agree_come_last() -> None:
    features = torch.tensor([[0.0], [9.0], [1.0], [1.1]])
    weights = torch.tensor([0.0, 0.0, 1e-6, 1e-6], dtype=torch.float64)
    assert largest_clusters(features, weights, 4).tolist() == [2, 3, 1, 0]


def test_members_that_agree_everywhere_still_give_a_choice() -> None:
    found = largest_clusters(torch.rand(6, 2), torch.zeros(6, dtype=torch.float64), 4)
    assert len(set(found.tolist())) == 4


def test_variances_are_those_of_the_members_forces(
    ensemble: Ensemble, pool: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_AT_A_TIME", 7)
    found = force_variances(ensemble, pool)
    for variance, prediction in zip(found, Predictor(ensemble).predict(pool), strict=True):
        assert prediction.member_forces is not None
        expected = prediction.member_forces[:, -1].var(axis=0, ddof=1).mean()
        assert variance.item() == pytest.approx(expected, rel=1e-9)


def test_no_structure_is_chosen_twice_and_the_same_each_time(ensemble: Ensemble, pool: list[Atoms]) -> None:
    found = select(ensemble, pool, 20)
    assert len(set(found.tolist())) == 20
    assert found.tolist() == select(ensemble, pool, 20).tolist()
    assert found[:5].tolist() == select(ensemble, pool, 5).tolist()
    assert sorted(select(ensemble, pool, len(pool)).tolist()) == list(range(len(pool)))


def test_a_copy_is_not_chosen_however_unsure_the_members_are(ensemble: Ensemble, pool: list[Atoms]) -> None:
    """The most unsure of all, twenty times, turned and renumbered."""
    unsure = pool[int(force_variances(ensemble, pool).argmax())]
    copies = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        copy = unsure[generator.permutation(len(unsure))]
        copy.rotate(generator.uniform(0, 360), generator.normal(size=3))
        copies.append(copy)
    found = select(ensemble, pool + copies, 20)
    assert sum(place >= len(pool) or pool[place] is unsure for place in found) == 1


def test_atoms_that_are_all_alike_are_told_by_their_elements(ensemble: Ensemble) -> None:
    """Each is the mean of its element, so that both molecules have the same features but for their composition."""
    images = [molecule(name) for name in ("H2", "O2", "H2")]
    assert sorted(select(ensemble, images, 3).tolist()) == [0, 1]


def test_of_equally_unsure_structures_every_kind_is_met(
    ensemble: Ensemble, pool: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "force_variances", lambda _, images: torch.ones(len(images), dtype=torch.float64))
    formulas = {pool[place].get_chemical_formula() for place in select(ensemble, pool, 6)}
    assert formulas == {"CH4", "H2O", "C2H6O"}


def test_the_order_of_atoms_and_where_they_are_change_nothing(ensemble: Ensemble, pool: list[Atoms]) -> None:
    moved = []
    for seed, atoms in enumerate(pool):
        generator = np.random.default_rng(seed)
        moved.append(atoms[generator.permutation(len(atoms))])
        moved[-1].rotate(generator.uniform(0, 360), generator.normal(size=3))
        moved[-1].positions += 10
    assert select(ensemble, moved, 10).tolist() == select(ensemble, pool, 10).tolist()


def test_one_member_has_no_spread(model: Model, pool: list[Atoms]) -> None:
    config, params = model
    with pytest.raises(ModelError, match=r"two or more members.*--ensemble 8.*pykinml combine"):
        select(Ensemble(config, stack_members([params])), pool, 3)


@pytest.mark.parametrize("number", [0, 51])
def test_as_many_as_there_are(ensemble: Ensemble, pool: list[Atoms], number: int) -> None:
    with pytest.raises(ConfigError, match=f"from 1 to 50, the structures of the pool, got {number}"):
        select(ensemble, pool, number)


def test_a_crystal_is_refused_by_its_place(ensemble: Ensemble, pool: list[Atoms]) -> None:
    pool[3].cell, pool[3].pbc = np.eye(3) * 5, True
    with pytest.raises(ModelError, match=r"images\[3\] \(CH4\).*periodic"):
        select(ensemble, pool, 3)


def test_how_many_are_read_at_a_time_changes_nothing(
    ensemble: Ensemble, pool: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = select(ensemble, pool, 10).tolist()
    monkeypatch.setattr(selection, "_BATCH", 7)
    assert select(ensemble, pool, 10).tolist() == expected
