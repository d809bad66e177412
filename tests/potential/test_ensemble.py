"""Members evaluated at once equal each of them alone, at every level, packed and unpacked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import (
    flat_members,
    member_batch_energies,
    member_batch_energies_and_forces,
    member_energies_and_forces,
    member_of,
    stack_members,
)
from pykinml_func.potential.features import KnownAEVs
from pykinml_func.potential.forces import batch_energies, batch_energies_and_forces
from pykinml_func.types import Batch, Params, Structures

AEV = AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2)
ONE = ModelConfig(aev=AEV, neurons=(6, 4, 1), activations=("gaussian", "tanh", "identity"))
CHAIN = ONE.model_copy(update={"fidelities": (0, 1, 3)})
TOLERANCE = 1e-12
"""eV and eV/Å"""


@pytest.fixture(params=[ONE, CHAIN], ids=["one level", "chain"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    found: ModelConfig = request.param
    return found


def drawn(config: ModelConfig, n_members: int) -> list[Params]:
    return [init_params(config, torch.Generator().manual_seed(seed)) for seed in range(n_members)]


@pytest.fixture(params=["positions", "jacobians"])
def batch(
    request: pytest.FixtureRequest,
    make_structures: Callable[..., Structures],
    make_source: Callable[..., Source],
) -> Batch:
    """Four structures of three formulas in a batch that is padded for five."""
    structures = make_structures(["C2H2", "CH4", "C2H4", "CH4", "C2H2"], seed=2)
    packer = Packer(make_source(structures, AEV, request.param), np.arange(5), 5, torch.float64, torch.device("cpu"))
    return packer.pack(np.array([3, 0, 2, 4]))


@pytest.mark.parametrize("n_members", [1, 3])
def test_members_equal_each_alone(config: ModelConfig, batch: Batch, n_members: int):
    members = drawn(config, n_members)
    arguments = batch.features, batch.structure_index, len(batch.energies)
    stacked = stack_members(members).networks
    energies, forces = member_batch_energies_and_forces(config, stacked, *arguments)
    alone = [batch_energies_and_forces(config, each.networks, *arguments) for each in members]
    assert forces.shape == (n_members, *batch.structure_index.shape, config.n_levels, 3)
    torch.testing.assert_close(energies, torch.stack([each[0] for each in alone]), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(forces, torch.stack([each[1] for each in alone]), rtol=0, atol=TOLERANCE)
    without = member_batch_energies(config, stacked, *arguments)
    torch.testing.assert_close(without, energies, rtol=0, atol=TOLERANCE)
    expected = torch.stack([batch_energies(config, each.networks, *arguments) for each in members])
    torch.testing.assert_close(without, expected, rtol=0, atol=TOLERANCE)
    assert len(energies[:, 0, -1].unique()) == n_members, "members differ"


def test_one_structure_at_the_highest_level(
    config: ModelConfig, make_structures: Callable[..., Structures], make_source: Callable[..., Source]
):
    source = make_source(make_structures(["C2H4"], seed=3), AEV, "positions")
    batch = Packer(source, np.array([0]), 1, torch.float64, torch.device("cpu")).pack(np.array([0]))
    members = drawn(config, 3)
    mask = (batch.structure_index == 0).double()
    found = member_energies_and_forces(config, stack_members(members).networks, batch.features, mask)
    for each, energy, forces in zip(members, *found, strict=True):
        expected = batch_energies_and_forces(config, each.networks, batch.features, batch.structure_index, 1)
        torch.testing.assert_close(energy, expected[0][0, -1], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(forces, expected[1][:, :, -1], rtol=0, atol=TOLERANCE)


def test_known_aevs_give_the_same(batch: Batch):
    stacked = stack_members(drawn(CHAIN, 2)).networks
    known = KnownAEVs(*batch.features.aevs_and_pullback(AEV))
    found, expected = (
        member_batch_energies_and_forces(CHAIN, stacked, features, batch.structure_index, len(batch.energies))
        for features in (known, batch.features)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_members_are_stacked_taken_and_laid_side_by_side():
    members = drawn(CHAIN, 3)
    stacked = stack_members(members)
    for place, member in enumerate(members):
        for one, other in zip(tree_leaves(member_of(stacked, place)), tree_leaves(member), strict=True):
            assert torch.equal(one, other)
    n_species = len(AEV.elements)
    for flat, whole in zip(tree_leaves(flat_members(stacked.networks)), tree_leaves(stacked.networks), strict=True):
        assert len(flat) == 3 * n_species
        assert torch.equal(flat[n_species + 1], whole[1, 1])
