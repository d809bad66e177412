"""First and second derivatives of AEVs by where the neighbours are, written out.

torch.func finds the same in `aev.aevs`, and the tests compare the two; but forward mode within forward or reverse mode
takes a hundred times as long here as the terms themselves. Derivatives are seen from each atom as a centre: by the
vectors from it to its neighbours, on which alone its AEV depends. `absolute` makes them derivatives by positions.

A term depends on few numbers q: a distance, or two distances and a cosine. For each, d²q/dx² is made of products of
first derivatives and of multiples of the unit matrix, which is what `_blocks` adds up.

# n atoms, S species, K pairs of species, D AEV length, P ordered pairs of atoms, T pairs of neighbours of a centre
# R radial shells, A radial shells of the angular part, B angular sections
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pykinml_func.config import AEVConfig
from pykinml_func.potential.aev import checked_indices, power, scaled_sine

_LEAST_BASE = 1e-30
"""In place of a base of 0, whose power below 0 would be infinite, and times 0 no number."""


class Neighbours(NamedTuple):
    """Each atom with each other: the radial part."""

    groups: Tensor
    """(P,2): centre and neighbour"""
    lengths: Tensor
    """(P,) Å"""
    units: Tensor
    """(P,1,3): unit vectors"""
    slopes: Tensor
    """(P,R): derivatives of the terms by the length"""
    curvatures: Tensor
    """(P,R): second derivatives"""


class Angles(NamedTuple):
    """Each atom with each two others: the angular part, whose terms are products of a shell and a section."""

    groups: Tensor
    """(T,3): centre, first and second neighbour"""
    kinds: Tensor
    """(T,): the neighbours' pair of species"""
    lengths: Tensor
    """(T,2) Å"""
    cosines: Tensor
    """(T,)"""
    units: Tensor
    """(T,2,3): unit vectors, the derivative of each length by its own vector"""
    cosine_slopes: Tensor
    """(T,2,3): derivatives of the cosine by the two vectors"""
    shells: Tensor
    """(T,6,A): value; derivatives by either length; by the first twice, by both, by the second twice"""
    sections: Tensor
    """(T,3,B): value, first and second derivative by the cosine"""


def surroundings(config: AEVConfig, species: Tensor, positions: Tensor) -> tuple[Neighbours, Angles]:
    """What the derivatives of one structure's AEVs are made of; batched over positions by vmap.

    species: (n,) indices into `config.elements`; positions: (n,3) Å. Raises ValueError for an index outside the
    elements.
    """
    found = _groups(checked_indices(config, species), len(config.elements))
    pairs, triples, kinds = (torch.from_numpy(each).to(species.device) for each in found)
    return _neighbours(config, pairs, positions), _angles(config, triples, kinds, positions)


def relative_jacobians(config: AEVConfig, species: Tensor, neighbours: Neighbours, angles: Angles) -> Tensor:
    """Derivatives of AEVs by the vectors from their centres; 0 for the centre itself. Returns (n,n,3,D) 1/Å, the centre
    first.
    """
    n, n_species = len(species), len(config.elements)
    n_kinds = n_species * (n_species + 1) // 2
    rows = _pair_rows(neighbours.groups, n) * n_species + species[neighbours.groups[:, 1:]]
    terms = neighbours.units.unsqueeze(-1) * neighbours.slopes[:, None, None]
    radial = _sum_rows(terms.flatten(2), rows, n * n * n_species).view(n, n, n_species, 3, -1)
    by_length = _products(angles.shells[:, 1:3], angles.sections[:, :1])
    by_cosine = _products(angles.shells[:, :1], angles.sections[:, 1:2])
    terms = angles.units.unsqueeze(-1) * by_length.unsqueeze(2)
    terms = terms + angles.cosine_slopes.unsqueeze(-1) * by_cosine.unsqueeze(2)
    rows = _pair_rows(angles.groups, n) * n_kinds + angles.kinds.unsqueeze(1)
    angular = _sum_rows(terms.flatten(2), rows, n * n * n_kinds).view(n, n, n_kinds, 3, -1)
    return torch.cat([part.transpose(2, 3).flatten(3) for part in (radial, angular)], dim=3)


def relative_curvatures(
    config: AEVConfig, species: Tensor, neighbours: Neighbours, angles: Angles, gradients: Tensor
) -> Tensor:
    """Second derivatives of AEVs by the vectors from their centres, contracted with `gradients` (n,D).

    Returns (n,n,3,n,3) eV/Å², the centre first.
    """
    n, n_radial = len(species), len(config.elements) * config.n_radial
    radial, angular = gradients[:, :n_radial], gradients[:, n_radial:]
    centres, others = neighbours.groups.unbind(1)
    of_pairs = radial.unflatten(1, (-1, config.n_radial))[centres, species[others]]
    kinds = angular.unflatten(1, (-1, config.n_angular_radial, config.n_angular))
    of_angles = kinds[angles.groups[:, 0], angles.kinds]
    out = _sum_blocks(neighbours.groups, _radial_blocks(neighbours, of_pairs), n)
    out = out + _sum_blocks(angles.groups, _angular_blocks(angles, of_angles), n)
    return out.view(n, n, n, 3, 3).transpose(2, 3)


def absolute(relative: Tensor) -> Tensor:
    """Second derivatives by the vectors from each centre (n,n,3,n,3), as ones by positions (n,3,n,3) and summed: what
    moves a centre moves all its neighbours the other way.
    """
    centre_first = relative.sum(dim=1)
    of_centres = torch.diag_embed(relative.sum(dim=(1, 3)).permute(1, 2, 0)).permute(2, 0, 3, 1)
    return relative.sum(dim=0) - centre_first - relative.sum(dim=3).permute(1, 2, 0, 3) + of_centres


@lru_cache(maxsize=4096)
def _groups(species: tuple[int, ...], n_species: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,2) pairs, (T,3) angles and their (T,) kinds. Arrays, not tensors: see `aev.neighbour_lists`."""
    atoms = range(len(species))
    kinds = {pair: place for place, pair in enumerate(combinations_with_replacement(range(n_species), 2))}
    triples = [(i, j, k) for i in atoms for j, k in combinations(atoms, 2) if i not in (j, k)]
    of_triples = [kinds[min(species[j], species[k]), max(species[j], species[k])] for _, j, k in triples]
    pairs = np.array(list(permutations(atoms, 2)), dtype=np.int64).reshape(-1, 2)
    return pairs, np.array(triples, dtype=np.int64).reshape(-1, 3), np.array(of_triples, dtype=np.int64)


def _neighbours(config: AEVConfig, index: Tensor, positions: Tensor) -> Neighbours:
    lengths, units = _from_centres(positions, index)
    lengths = lengths.squeeze(1)
    g, g_1, g_2 = _gaussian(lengths, config.radial_eta, config.radial_shifts)
    f, f_1, f_2 = _cutoff(lengths, config.radial_cutoff)
    slopes = config.radial_prefactor * (g_1 * f + g * f_1)
    curvatures = config.radial_prefactor * (g_2 * f + 2 * g_1 * f_1 + g * f_2)
    return Neighbours(index, lengths, units, slopes, curvatures)


def _angles(config: AEVConfig, index: Tensor, kinds: Tensor, positions: Tensor) -> Angles:
    lengths, units = _from_centres(positions, index)
    cosines = units.prod(dim=1).sum(dim=1)
    cosine_slopes = (units.flip(1) - cosines[:, None, None] * units) / lengths.unsqueeze(2)
    shells, sections = _shells(config, lengths), _sections(config, units, cosines)
    return Angles(index, kinds, lengths, cosines, units, cosine_slopes, shells, sections)


def _from_centres(positions: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (P,k) and unit vectors (P,k,3) from centres to neighbours. index: (P,1+k)."""
    vectors = positions[index[:, 1:]] - positions[index[:, :1]]
    lengths = (vectors * vectors).sum(dim=-1).sqrt()
    return lengths, vectors / lengths.unsqueeze(-1)


def _cutoff(distances: Tensor, cutoff: float) -> list[Tensor]:
    """`aev.cosine_cutoff` and its first two derivatives, (..., 1) each."""
    rate = math.pi / cutoff
    sine, cosine = torch.sin(rate * distances), torch.cos(rate * distances)
    values = 0.5 + 0.5 * cosine, -0.5 * rate * sine, -0.5 * rate**2 * cosine
    return [torch.where(distances <= cutoff, value, 0.0).unsqueeze(-1) for value in values]


def _gaussian(distances: Tensor, eta: float, shifts: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """exp(-eta (r - shift)²) and its first two derivatives, (..., shifts) each."""
    offsets = distances.unsqueeze(-1) - distances.new_tensor(shifts)
    value = torch.exp(-eta * offsets**2)
    slope = -2 * eta * offsets * value
    return value, slope, -2 * eta * (value + offsets * slope)


def _shells(config: AEVConfig, lengths: Tensor) -> Tensor:
    """`Angles.shells`: the first factor of `aev.angular_terms` and its derivatives. lengths: (T,2)."""
    g, g_1, g_2 = _gaussian(lengths.mean(dim=1), config.angular_eta, config.angular_shifts)
    g_1, g_2 = g_1 / 2, g_2 / 4  # by either length, of which the mean holds half
    a, a_1, a_2 = _cutoff(lengths[:, 0], config.angular_cutoff)
    b, b_1, b_2 = _cutoff(lengths[:, 1], config.angular_cutoff)
    by_first, by_second = g_1 * a * b + g * a_1 * b, g_1 * a * b + g * a * b_1
    twice_first = g_2 * a * b + 2 * g_1 * a_1 * b + g * a_2 * b
    both = g_2 * a * b + g_1 * (a_1 * b + a * b_1) + g * a_1 * b_1
    twice_second = g_2 * a * b + 2 * g_1 * a * b_1 + g * a * b_2
    shells = [g * a * b, by_first, by_second, twice_first, both, twice_second]
    return config.angular_prefactor * torch.stack(shells, dim=1)


def _sections(config: AEVConfig, units: Tensor, cosines: Tensor) -> Tensor:
    """`Angles.sections`: the second factor of `aev.angular_terms` and its derivatives. At beta = 1 the sine of
    collinear atoms has none, and 0 is taken, as there.
    """
    beta, zeta = config.beta, config.zeta
    angles = cosines.new_tensor(config.angular_sections)
    along, across = 0.5 * torch.cos(angles), 0.5 * torch.sin(angles)
    sine = scaled_sine(beta, units[:, 0], units[:, 1])
    smooth, divisor = sine > 0, torch.where(sine > 0, sine, 1.0)
    sine_1 = torch.where(smooth, -(beta**2) * cosines / divisor, 0.0)
    sine_2 = torch.where(smooth, -(beta**2 + sine_1**2) / divisor, 0.0)
    base = 0.5 + beta * cosines.unsqueeze(1) * along + sine.unsqueeze(1) * across
    base_1, base_2 = beta * along + sine_1.unsqueeze(1) * across, sine_2.unsqueeze(1) * across
    slope = zeta * power(base, zeta - 1)
    curvature = zeta * (zeta - 1) * power(base.clamp_min(_LEAST_BASE), zeta - 2)
    return torch.stack([power(base, zeta), slope * base_1, curvature * base_1**2 + slope * base_2], dim=1)


def _radial_blocks(neighbours: Neighbours, weights: Tensor) -> Tensor:
    """(P,1,3,1,3): second derivatives of the terms, contracted. weights: (P,R)."""
    slopes, curvatures = ((terms * weights).sum(dim=1) for terms in (neighbours.slopes, neighbours.curvatures))
    unit = (slopes / neighbours.lengths)[:, None, None]
    return _blocks(neighbours.units.unsqueeze(1), curvatures[:, None, None] - unit, unit)


def _angular_blocks(angles: Angles, weights: Tensor) -> Tensor:
    """(T,2,3,2,3): second derivatives of the terms, contracted. weights: (T,A,B).

    With u, v the lengths and c the cosine: d²u/du² = (1 - û û) / u; d²c/du² = -(û c_u + c_u û) / u - c (1 - û û) / u²;
    d²c/dudv = -û c_v / u - c_u v̂ / v + (1 - c û v̂) / (u v).
    """
    by = angles.shells @ weights @ angles.sections.mT
    c, (u, v) = angles.cosines, angles.lengths.unbind(1)
    slope = by[:, 0, 1]
    unit_u, unit_v = by[:, 1, 0] / u - slope * c / u**2, by[:, 2, 0] / v - slope * c / v**2
    unit_both = slope / (u * v)
    both, with_u, with_v = by[:, 4, 0] - unit_both * c, by[:, 1, 1] - slope / u, by[:, 2, 1] - slope / v
    inner = [by[:, 3, 0] - unit_u, both, with_u, both, by[:, 5, 0] - unit_v, with_v, with_u, with_v, by[:, 0, 2]]
    units = torch.stack([unit_u, unit_both, unit_both, unit_v], dim=1).unflatten(1, (2, 2))
    zero = torch.zeros_like(angles.units[:, 0])
    u_slopes, v_slopes = torch.stack([angles.units[:, 0], zero], dim=1), torch.stack([zero, angles.units[:, 1]], dim=1)
    slopes = torch.stack([u_slopes, v_slopes, angles.cosine_slopes], dim=1)
    return _blocks(slopes, torch.stack(inner, dim=1).unflatten(1, (3, 3)), units)


def _blocks(slopes: Tensor, inner: Tensor, units: Tensor) -> Tensor:
    """sum_ab inner_ab dq_a/dx dq_b/dx, and units times the unit matrix of three axes, for groups of k neighbours.

    slopes: (T,q,k,3); inner: (T,q,q); units: (T,k,k). Returns (T,k,3,k,3).
    """
    flat = slopes.flatten(2)
    products = (flat.mT @ inner @ flat).view(-1, *slopes.shape[2:], *slopes.shape[2:])
    axes = torch.eye(3, dtype=units.dtype, device=units.device)
    return products + units[:, :, None, :, None] * axes[:, None, :]


def _products(first: Tensor, second: Tensor) -> Tensor:
    """(T,k,A) and (T,k,B) as (T,k,AB)."""
    return (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(2)


def _pair_rows(index: Tensor, n: int) -> Tensor:
    """(T,k): a number for each centre and neighbour. index: (T,1+k)."""
    return index[:, :1] * n + index[:, 1:]


def _sum_rows(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """values (T,k,F) summed by their rows (T,k). Returns (n_rows,F)."""
    return values.new_zeros(n_rows, values.shape[2]).index_add(0, rows.flatten(), values.flatten(0, 1))


def _sum_blocks(index: Tensor, blocks: Tensor, n: int) -> Tensor:
    """blocks (T,k,3,k,3) summed by centre and both neighbours. index: (T,1+k). Returns (nnn,9)."""
    rows = _pair_rows(index, n).unsqueeze(2) * n + index[:, 1:].unsqueeze(1)
    return _sum_rows(blocks.transpose(2, 3).flatten(3).flatten(1, 2), rows.flatten(1), n**3)
