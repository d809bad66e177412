"""dAEV/dxyz in closed form: what the `jacobian` force path stores.

Only the neighbours that a term names move it, so each block d(AEV of centre c)/d(position of atom j) is a sum over the
pairs that hold j. With the angular term F(r_j, r_k) G(t), t = cos(theta), it is the sum over k of
dF/dr_j G u_j + F dG/dt (u_k - t u_j) / r_j, two small matrix products. What moves the centre is minus the sum of the
blocks of its neighbours. Equations 3 and 4 of Smith et al. 2017, doi 10.1039/C6SC05720A, as in `aev`.

# n atoms, S species, K third atoms a centre and neighbour (padded), D AEV length
# R radial shells, Q = (radial shells of the angular part) x (angular sections)
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pykinml_func.config import AEVConfig
from pykinml_func.potential.aev import checked_indices, cosine_cutoff, power, scaled_sine


class _Directions(NamedTuple):
    """From every centre (first axis) to every atom (second axis); the diagonal is padding."""

    lengths: Tensor
    """(n,n) Å, 1 on the diagonal"""
    units: Tensor
    """(n,n,3)"""
    present: Tensor
    """(n,n) 1, and 0 on the diagonal"""


def aev_jacobians(config: AEVConfig, species: Tensor, positions: Tensor) -> Tensor:
    """dAEV/dxyz of one structure; batched over positions by vmap.

    species: (n,) indices into `config.elements`; positions: (n,3) Å. Returns (n,D,n,3) in 1/Å. Raises ValueError for an
    index outside the elements.
    """
    kinds = checked_indices(config, species)
    directions = _directions(positions)
    radial = _radial_blocks(config, directions)
    angular = [_angular_blocks(config, directions, third) for third in _third_atoms(kinds, len(config.elements))]
    columns = [_of_neighbour(config, j, kind, radial, angular) for j, kind in enumerate(kinds)]
    jacobian = torch.stack(columns, dim=2)
    jacobian.diagonal(dim1=0, dim2=2).copy_(-jacobian.sum(dim=2).permute(1, 2, 0))
    return jacobian


def _directions(positions: Tensor) -> _Directions:
    vectors = positions.unsqueeze(0) - positions.unsqueeze(1)
    own = torch.eye(positions.shape[0], dtype=torch.bool, device=positions.device)
    lengths = torch.where(own, 1.0, (vectors * vectors).sum(dim=-1)).sqrt()
    return _Directions(lengths, vectors / lengths.unsqueeze(-1), (~own).to(positions.dtype))


def _of_neighbour(config: AEVConfig, j: int, kind: int, radial: Tensor, angular: list[Tensor]) -> Tensor:
    """d(every AEV)/d(position of atom j), zero in the blocks of other species. Returns (n,D,3)."""
    n, n_species = radial.shape[0], len(config.elements)
    zero_radial = radial.new_zeros(n, config.n_radial, 3)
    zero_angular = radial.new_zeros(n, config.n_angular_radial * config.n_angular, 3)
    blocks = [radial[:, j] if s == kind else zero_radial for s in range(n_species)]
    for first, second in combinations_with_replacement(range(n_species), 2):
        other = second if first == kind else first
        blocks.append(angular[other][:, j] if kind in (first, second) else zero_angular)
    return torch.cat(blocks, dim=1)


def _radial_blocks(config: AEVConfig, directions: _Directions) -> Tensor:
    """d(radial terms)/d(position of the neighbour). Returns (n,n,R,3)."""
    lengths, cutoff = directions.lengths, config.radial_cutoff
    offsets = lengths.unsqueeze(-1) - lengths.new_tensor(config.radial_shifts)
    gaussians = config.radial_prefactor * torch.exp(-config.radial_eta * offsets * offsets)
    smooth, slope = cosine_cutoff(lengths, cutoff).unsqueeze(-1), cosine_cutoff_slope(lengths, cutoff).unsqueeze(-1)
    slopes = gaussians * (slope - 2 * config.radial_eta * offsets * smooth) * directions.present.unsqueeze(-1)
    return slopes.unsqueeze(-1) * directions.units.unsqueeze(-2)


def _angular_blocks(config: AEVConfig, directions: _Directions, third: np.ndarray) -> Tensor:
    """d(angular terms with third atoms of one species)/d(position of the neighbour).

    third: (n,n,K) of `_third_atoms`. Returns (n,n,Q,3).
    """
    lengths, units, present = directions
    atoms = torch.from_numpy(third).to(lengths.device)
    centres = torch.arange(len(third), device=lengths.device)[:, None, None]
    near, far = lengths.unsqueeze(2), lengths[centres, atoms]
    unit, other = units.unsqueeze(2).expand(*atoms.shape, 3), units[centres, atoms]
    cosine = (unit * other).sum(dim=-1)

    cutoff = cosine_cutoff(lengths, config.angular_cutoff) * present
    cutoff_slope = cosine_cutoff_slope(lengths, config.angular_cutoff) * present
    offsets = (0.5 * (near + far)).unsqueeze(-1) - lengths.new_tensor(config.angular_shifts)
    gaussians = config.angular_prefactor * torch.exp(-config.angular_eta * offsets * offsets)
    gaussians = gaussians * cutoff[centres, atoms].unsqueeze(-1)
    shells = gaussians * cutoff[..., None, None]
    shell_slopes = gaussians * cutoff_slope[..., None, None] - config.angular_eta * offsets * shells
    sections, section_slopes = _sections_and_slopes(config, unit, other, cosine)

    # other - cosine unit, as a double cross product: never longer than the sine that its factor is divided by
    turn = torch.linalg.cross(torch.linalg.cross(unit, other), unit) / near.unsqueeze(-1)
    turned = (section_slopes.unsqueeze(-1) * turn.unsqueeze(-2)).flatten(-2)
    stretched = (shell_slopes.transpose(-1, -2) @ sections).flatten(-2).unsqueeze(-1) * units.unsqueeze(-2)
    return stretched + (shells.transpose(-1, -2) @ turned).unflatten(-1, (-1, 3)).flatten(-3, -2)


def _sections_and_slopes(config: AEVConfig, unit: Tensor, other: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """G and dG/d(cos theta) of `aev.angular_terms`; cosine: (n,n,K). Returns two of (n,n,K,sections)."""
    angles = cosine.new_tensor(config.angular_sections)
    sine = scaled_sine(config.beta, unit, other)
    collinear = sine == 0
    sine_slope = torch.where(collinear, 0.0, -(config.beta**2) * cosine / torch.where(collinear, 1.0, sine))
    scaled = config.beta * cosine
    base = 0.5 + 0.5 * (scaled.unsqueeze(-1) * torch.cos(angles) + sine.unsqueeze(-1) * torch.sin(angles))
    base_slope = 0.5 * (config.beta * torch.cos(angles) + sine_slope.unsqueeze(-1) * torch.sin(angles))
    lower = power(base, config.zeta - 1)
    return lower * base, config.zeta * lower * base_slope


def cosine_cutoff_slope(distances: Tensor, cutoff: float) -> Tensor:
    """Derivative of `aev.cosine_cutoff`. distances: (...) Å. Returns (...) 1/Å."""
    rate = math.pi / cutoff
    return torch.where(distances <= cutoff, -0.5 * rate * torch.sin(rate * distances), 0.0)


@lru_cache(maxsize=4096)
def _third_atoms(species: tuple[int, ...], n_species: int) -> tuple[np.ndarray, ...]:
    """For each species the atoms k of it that are neither centre c nor neighbour j: (n,n,K), padded with c."""
    n = len(species)
    tables = []
    for kind in range(n_species):
        members = [atom for atom in range(n) if species[atom] == kind]
        rows = [[k for k in members if k not in (c, j)] if c != j else [] for c in range(n) for j in range(n)]
        width = max(len(row) for row in rows)
        padded = [row + [place // n] * (width - len(row)) for place, row in enumerate(rows)]
        tables.append(np.array(padded, dtype=np.int64).reshape(n, n, width))
    return tuple(tables)
