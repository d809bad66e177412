"""How far an atom's surroundings lie from those that a model was trained on.

# M structures, S species, N atoms a species (padded), D AEV length, K directions of AEV space
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykinml_func.types import Domain

_TINY = 1e-30


def atom_distances(domain: Domain, aevs: Tensor) -> Tensor:
    """|(aev - mean) W| / farthest with each element's mean and whitener W: 1 is the farthest atom trained on.

    The difference is taken in the AEVs' precision and whitened in the domain's. aevs: (S,N,D). Returns (S,N): inf for
    an element that had no atoms; for padding, the distance of an atom without neighbours.
    """
    # more than 0 over 0 is inf
    return white_lengths(domain, aevs).add(_TINY) / domain.farthest.unsqueeze(1)


def white_lengths(domain: Domain, aevs: Tensor) -> Tensor:
    """|(aev - mean) W|, about the root of the number of directions for a typical atom. aevs: (S,N,D). Returns (S,N)."""
    return torch.linalg.vector_norm(white_offsets(domain, aevs), dim=2)


def white_offsets(domain: Domain, aevs: Tensor) -> Tensor:
    """(aev - mean) W, in the domain's precision. aevs: (S,N,D). Returns (S,N,K)."""
    return torch.bmm((aevs - domain.mean.unsqueeze(1)).to(domain.whitener.dtype), domain.whitener)


def structure_distances(domain: Domain, aevs: Tensor, structure_index: Tensor, n_structures: int) -> Tensor:
    """Largest of `atom_distances` over the atoms of each structure.

    aevs: (S,N,D); structure_index: (S,N), n_structures where padded. Returns (M,).
    """
    by_atom = atom_distances(domain, aevs).flatten()
    zeros = by_atom.new_zeros(n_structures + 1)
    return zeros.scatter_reduce(0, structure_index.flatten(), by_atom, "amax")[:n_structures]


def squared_distance(domain: Domain, mask: Tensor, aevs: Tensor) -> Tensor:
    """Square of the largest of `atom_distances` of one structure, in four operations once constants are folded.

    mask: (S,N) 1 where there is an atom; aevs: (S,N,D), 0 for padding. Returns ().
    """
    mean, whitener, farthest = (each.double() for each in domain)
    was_seen = farthest[:, None, None] > 0
    weights = torch.where(was_seen, whitener / farthest[:, None, None], 0.0)
    origins = torch.where(was_seen, -torch.bmm(mean.unsqueeze(1), weights), torch.inf)
    origins = torch.where(mask.unsqueeze(2) > 0, origins, 0.0)
    offsets = torch.baddbmm(origins.to(aevs), aevs, weights.to(aevs))
    return (offsets * offsets).sum(dim=2).amax()
