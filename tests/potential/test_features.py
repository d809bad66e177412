"""What a batch feeds the networks: the same AEVs from each kind, and pullbacks that are transposed Jacobians."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from pykinml_func import aev_jacobians, aevs
from pykinml_func.config import AEVConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.types import Batch, Structures

CONFIG = AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4)
FORMULAS = ["CH4", "O", "C2H4O", "HO", "CO"]
TOLERANCE = 1e-12  # AEVs, and 1/Å: rounding alone

Structured = Callable[..., Structures]
Sourced = Callable[[Structures, AEVConfig, str], Source]


def packed(source: Source) -> tuple[Packer, Batch]:
    everything = np.arange(len(FORMULAS))
    packer = Packer(source, everything, len(FORMULAS), torch.float64, torch.device("cpu"))
    return packer, packer.pack(everything)


def each_structure(source: Source, function: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    species, positions = torch.from_numpy(source.species), torch.from_numpy(source.positions)
    return [
        function(species[a:b], positions[a:b]) for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)
    ]


@pytest.mark.parametrize("contents", ["aevs", "jacobians", "positions"])
@pytest.mark.usefixtures("either_aevs")
def test_aevs_are_those_of_each_structure(make_structures: Structured, make_source: Sourced, contents: str):
    source = make_source(make_structures(FORMULAS), CONFIG, contents)
    packer, batch = packed(source)
    found, _ = batch.features.aevs_and_pullback(CONFIG)
    expected = torch.cat(each_structure(source, lambda species, x: aevs(CONFIG, species, x)))
    np.testing.assert_allclose(packer.unpack(packer.members, found), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.usefixtures("either_aevs")
def test_the_pullback_is_the_transposed_jacobian(
    make_structures: Structured, make_source: Sourced, contents: str, levels: int
):
    source = make_source(make_structures(FORMULAS), CONFIG, contents)
    packer, batch = packed(source)
    found, pullback = batch.features.aevs_and_pullback(CONFIG)
    generator = torch.Generator().manual_seed(0)
    gradients = torch.rand(levels, *found.shape, generator=generator, dtype=torch.float64)
    pulled = pullback(gradients)
    assert pulled.shape == (levels, *found.shape[:2], 3)
    jacobians = each_structure(source, lambda species, x: aev_jacobians(CONFIG, species, x))
    for gradient, of_level in zip(gradients, pulled, strict=True):
        rows = torch.from_numpy(packer.unpack(packer.members, gradient)).split(np.diff(source.offsets).tolist())
        expected = torch.cat([torch.einsum("nd,ndax->ax", g, j) for g, j in zip(rows, jacobians, strict=True)])
        np.testing.assert_allclose(packer.unpack(packer.members, of_level), expected, rtol=0, atol=100 * TOLERANCE)
        assert not of_level[batch.structure_index == len(FORMULAS)].any(), "padding feels nothing"


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
@pytest.mark.usefixtures("either_aevs")
def test_the_pullback_is_differentiable_and_batched(make_structures: Structured, make_source: Sourced, contents: str):
    """Training to forces takes the first, an ensemble the second."""
    _, batch = packed(make_source(make_structures(FORMULAS), CONFIG, contents))
    found, pullback = batch.features.aevs_and_pullback(CONFIG)
    generator = torch.Generator().manual_seed(1)
    gradients = torch.rand(4, 2, *found.shape, generator=generator, dtype=torch.float64)
    each = torch.stack([pullback(member) for member in gradients])
    torch.testing.assert_close(vmap(pullback)(gradients), each, rtol=0, atol=TOLERANCE)

    def squared(gradients: Tensor) -> Tensor:
        return (pullback(gradients) ** 2).sum()

    direction = torch.rand(gradients[0].shape, generator=generator, dtype=torch.float64)
    slope = (grad(squared)(gradients[0]) * direction).sum()
    # of a linear map, so that no difference is too coarse
    expected = (squared(gradients[0] + direction) - squared(gradients[0] - direction)) / 2
    torch.testing.assert_close(slope, expected, rtol=TOLERANCE, atol=0)


def test_aevs_alone_give_no_forces(make_structures: Structured, make_source: Sourced):
    _, batch = packed(make_source(make_structures(FORMULAS), CONFIG, "aevs"))
    found, pullback = batch.features.aevs_and_pullback(CONFIG)
    with pytest.raises(TypeError, match="forces need Jacobians or positions"):
        pullback(found.unsqueeze(0))
