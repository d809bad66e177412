"""Where in AEV space a model was trained: one ellipsoid an element, round the atoms of its training structures.

# M structures, S species, N atoms a species (padded), D AEV length, K directions of AEV space
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer
from pykinml_func.potential.domain import white_lengths
from pykinml_func.types import Domain

_MOST_STRUCTURES = 10_000
"""Evenly spread over the training set: enough for every direction's spread. The farthest atom is of all structures."""

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
    members = np.sort(packer.members)  # as they lie on disk
    source = packer.source._replace(forces=None, has_forces=None, jacobians=None)
    read = Packer(source, members, packer.batch_size, packer.dtype, packer.device)
    step = -(-len(members) // _MOST_STRUCTURES)
    mean, covariance = _moments(model_config, read.of(members[::step]))
    whitener = torch.stack([_whitener(each) for each in covariance.cpu()]).to(mean.device)
    farthest = torch.zeros(len(mean), device=mean.device)
    domain = Domain(mean.float(), whitener.float(), farthest)
    for aevs, mask in _atoms(model_config, read):
        # atoms that are all alike are as far as one standard deviation
        found = torch.where(mask, white_lengths(domain, aevs).clamp(min=1 / _ROUNDING), 0).amax(dim=1)
        farthest = torch.maximum(farthest, found)
    return domain._replace(farthest=farthest * _ROUNDING)


def _atoms(model_config: ModelConfig, packer: Packer) -> Iterator[tuple[Tensor, Tensor]]:
    """AEVs (S,N,D) of every batch, and a mask (S,N) of the atoms."""
    for batch in packer.batches(packer.members):
        aevs, _ = batch.features.aevs_and_pullback(model_config.aev)
        yield aevs, batch.structure_index < len(batch.energies)


def _moments(model_config: ModelConfig, packer: Packer) -> tuple[Tensor, Tensor]:
    """Mean (S,D) and covariance (S,D,D) of each element's AEVs in float64."""
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
    return mean, squares / number[:, None] - mean.unsqueeze(2) * mean.unsqueeze(1)


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
