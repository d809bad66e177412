"""Where in AEV space a model was trained: one ellipsoid an element, round the atoms of its training structures.

# M structures, S species, N atoms a species (padded), D AEV length, K directions of AEV space
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer
from pykinml_func.potential.domain import white_lengths
from pykinml_func.types import Domain

_MOST_STRUCTURES = 10_000
"""Evenly spread over the training set: enough for every direction's spread."""

_LEADING = 32
"""Directions in which the atoms spread most, each with a column of its own."""

_REST = 16
"""Columns for all other directions together: random projections keep lengths (Johnson and Lindenstrauss), to a fifth
with so many. There a model meets what its data had none of, such as neighbours of a new pair of elements.
"""

_FLOOR = 1e-4
"""Least variance of a direction, over the largest. Directions that the data hardly take count all the same, which is
what tells new molecules; much lower, and structures of the training set's own kind lie outside.
"""

_LEAST_VARIANCE = 1e-6
"""For an element whose atoms are all alike: what float32 loses of AEVs must stay small beside its root."""

_ROUNDING = 1 + 1e-4
"""So that the farthest atom itself, evaluated in other batches, is not beyond."""


def fit_domain(model_config: ModelConfig, packer: Packer) -> Domain:
    """The domain of the packer's members, all of them whatever its share of ranks."""
    step = -(-len(packer.members) // _MOST_STRUCTURES)
    source = packer.source._replace(forces=None, has_forces=None, jacobians=None)
    read = Packer(source, packer.members[::step], packer.batch_size, packer.dtype, packer.device)
    mean, covariance, counts = _moments(model_config, read)
    whitener = torch.stack([_whitener(each) for each in covariance.cpu()]).to(mean.device)
    domain = Domain(mean.float(), whitener.float(), torch.zeros_like(counts, dtype=torch.float32))
    for aevs, mask in _atoms(model_config, read):
        farthest = (white_lengths(domain, aevs) * mask).amax(dim=1)
        domain = domain._replace(farthest=torch.maximum(domain.farthest, farthest))
    # atoms that are all alike are as far as one standard deviation
    farthest = torch.where(counts > 0, (domain.farthest * _ROUNDING).clamp(min=1), 0)
    return domain._replace(farthest=farthest)


def _atoms(model_config: ModelConfig, packer: Packer) -> Iterator[tuple[Tensor, Tensor]]:
    """AEVs (S,N,D) of every batch, and a mask (S,N) of the atoms."""
    for batch in packer.batches(packer.members):
        aevs, _ = batch.features.aevs_and_pullback(model_config.aev)
        yield aevs, batch.structure_index < len(batch.energies)


def _moments(model_config: ModelConfig, packer: Packer) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (S,D) and covariance (S,D,D) of each element's AEVs in float64, and its number of atoms (S,)."""
    n_species, length = packer.source.n_species, model_config.aev.length
    counts = torch.zeros(n_species, dtype=torch.float64, device=packer.device)
    sums, squares = counts.new_zeros(n_species, length), counts.new_zeros(n_species, length, length)
    for aevs, mask in _atoms(model_config, packer):
        doubled = aevs.double()  # zero where padded
        counts += mask.sum(dim=1)
        sums += doubled.sum(dim=1)
        squares.baddbmm_(doubled.mT, doubled)
    number = counts.clamp(min=1)[:, None]
    mean = sums / number
    return mean, squares / number[:, None] - mean.unsqueeze(2) * mean.unsqueeze(1), counts


def _whitener(covariance: Tensor) -> Tensor:
    """What makes an offset's variance one in each leading direction, the others' taken for the least one.

    covariance: (D,D). Returns (D,K).
    """
    variances, directions = torch.linalg.eigh(covariance)
    floor = variances[-1].clamp(min=_LEAST_VARIANCE / _FLOOR) * _FLOOR
    leading = directions[:, -_LEADING:]
    columns = torch.randn(len(covariance), _REST, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rest = (columns - leading @ (leading.mT @ columns)) / (_REST * floor).sqrt()
    return torch.cat([leading / variances[-_LEADING:].clamp(min=floor).sqrt(), rest], dim=1)
