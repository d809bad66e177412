"""Atomic environment vectors (AEVs) in torch, in aevmod's layout and values.

The radial and angular terms are equations 3 and 4 of Smith, Isayev and Roitberg, Chem. Sci. 2017, 8, 3192, doi
10.1039/C6SC05720A, with aevmod's two changes: cos(theta) is scaled by `beta`, and 2^(1-zeta) (1 + cos)^zeta is (1/2 +
cos/2)^zeta. An AEV holds, first, `n_radial` numbers for each element; then, for each unordered pair of elements,
`n_angular_radial` x `n_angular`.

# A atoms (centres), K neighbours a centre and species (padded), P pairs of neighbours a centre and pair of species
# (padded)
# S species, R radial shells, Q = (radial shells of the angular part) x (angular sections), D = S R + S (S + 1) / 2 Q
"""

from __future__ import annotations

import math
from collections import defaultdict
from functools import lru_cache
from itertools import combinations, combinations_with_replacement

import numpy as np
import torch
from torch import Tensor
from torch.func import jacfwd

from pykinml_func.config import AEVConfig
from pykinml_func.types import NeighbourTables

_COLLINEAR = 1e-24
"""sin² of an angle that only rounding keeps from 0 or 180 degrees"""


def cosine_cutoff(distances: Tensor, cutoff: float) -> Tensor:
    """1/2 cos(pi r / cutoff) + 1/2 up to the cutoff, then 0: equation 2. distances: (...) Å."""
    return torch.where(distances <= cutoff, 0.5 * torch.cos(math.pi / cutoff * distances) + 0.5, 0.0)


def radial_terms(config: AEVConfig, distances: Tensor) -> Tensor:
    """exp(-eta (r - shift)²) times the cutoff: the terms of equation 3. distances: (...) Å. Returns (..., R)."""
    shifts = distances.new_tensor(config.radial_shifts)
    gaussians = torch.exp(-config.radial_eta * (distances.unsqueeze(-1) - shifts) ** 2)
    return config.radial_prefactor * gaussians * cosine_cutoff(distances, config.radial_cutoff).unsqueeze(-1)


def angular_terms(
    config: AEVConfig, first: Tensor, second: Tensor, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor]:
    """The two factors of the terms of equation 4, whose outer product is a pair's share of the AEV.

    first, second: (...) Å, distances of the two neighbours; cosine, sine: (...) of the angle between them.
    Returns (..., radial shells) and (..., sections). cos(theta - section) is expanded, so that no acos is needed.
    """
    shifts, sections = first.new_tensor(config.angular_shifts), first.new_tensor(config.angular_sections)
    mean = 0.5 * (first + second)
    cutoffs = cosine_cutoff(first, config.angular_cutoff) * cosine_cutoff(second, config.angular_cutoff)
    shells = torch.exp(-config.angular_eta * (mean.unsqueeze(-1) - shifts) ** 2) * cutoffs.unsqueeze(-1)
    base = 0.5 + 0.5 * (cosine.unsqueeze(-1) * torch.cos(sections) + sine.unsqueeze(-1) * torch.sin(sections))
    return config.angular_prefactor * shells, power(base, config.zeta)


def power(base: Tensor, exponent: float) -> Tensor:
    """base**exponent; whole exponents by squaring, which is faster than pow and has a derivative at 0."""
    if not float(exponent).is_integer() or exponent < 1:
        return base.clamp_min(0) ** exponent  # rounding leaves about -1e-17 where the base is 0
    if exponent == 1:
        return base
    half = power(base, int(exponent) // 2)
    return half * half * base if int(exponent) % 2 else half * half


def aevs_of_neighbours(config: AEVConfig, tables: NeighbourTables, positions: Tensor) -> Tensor:
    """AEVs of atoms whose neighbours are listed. positions: (A,3) Å. Returns (A,D)."""
    return torch.cat([_radial_part(config, tables, positions), _angular_part(config, tables, positions)], dim=1)


def _radial_part(config: AEVConfig, tables: NeighbourTables, positions: Tensor) -> Tensor:
    """(A, S R)."""
    index = torch.cat(tables.neighbours, dim=1)
    vectors, present = _vectors(positions, index)
    terms = radial_terms(config, _lengths(vectors, present)) * present.unsqueeze(-1)
    blocks = terms.split([table.shape[1] for table in tables.neighbours], dim=1)
    return torch.cat([block.sum(dim=1) for block in blocks], dim=1)


def _angular_part(config: AEVConfig, tables: NeighbourTables, positions: Tensor) -> Tensor:
    """(A, S (S + 1) / 2 Q)."""
    index = torch.cat(tables.pairs, dim=1)
    first, present = _vectors(positions, index[..., 0])
    second, _ = _vectors(positions, index[..., 1])
    first_length, second_length = _lengths(first, present), _lengths(second, present)
    first, second = first / first_length.unsqueeze(-1), second / second_length.unsqueeze(-1)
    cosine = config.beta * (first * second).sum(dim=-1)
    sine = scaled_sine(config.beta, first, second)
    shells, sections = angular_terms(config, first_length, second_length, cosine, sine)
    shells = shells * present.unsqueeze(-1)
    widths = [table.shape[1] for table in tables.pairs]
    blocks = zip(shells.split(widths, dim=1), sections.split(widths, dim=1), strict=True)
    return torch.cat([(s.transpose(1, 2) @ a).flatten(1) for s, a in blocks], dim=1)


def _vectors(positions: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (A,K,3) from each centre to the atoms at `index` (A,K), and whether there is one (A,K)."""
    present = index != torch.arange(index.shape[0], device=index.device).unsqueeze(1)
    return positions[index] - positions.unsqueeze(1), present


def _lengths(vectors: Tensor, present: Tensor) -> Tensor:
    """Lengths (A,K) of `vectors` (A,K,3); 1 where padded, so that no derivative divides by zero."""
    return torch.where(present, (vectors * vectors).sum(dim=-1), 1.0).sqrt()


def scaled_sine(beta: float, first: Tensor, second: Tensor) -> Tensor:
    """Sine of the angle whose cosine is beta cos(theta); first, second: (A,P,3) unit vectors. Returns (A,P).

    1 - beta² cos² is written as (1 - beta²) + beta² |first x second|², which does not cancel near collinear atoms.
    At beta = 1 the sine has a cusp there; within rounding of it the sine and its derivative are 0.
    """
    cross = torch.linalg.cross(first, second)
    squared = (1 - beta**2) + beta**2 * (cross * cross).sum(dim=-1)
    positive = squared > _COLLINEAR
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


@lru_cache(maxsize=4096)
def neighbour_lists(species: tuple[int, ...], n_species: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """All atoms of one structure as each other's neighbours, as in NeighbourTables, within the structure.

    Arrays, not tensors: a tensor made inside grad or vmap would be kept with that transform's wrapper around it.
    species: index of each atom's element. Returns one (n, K) a species and one (n, P, 2) a pair of species.
    """
    n = len(species)
    singles: list[list[list[int]]] = [[[] for _ in range(n)] for _ in range(n_species)]
    pairs: dict[tuple[int, int], list[list[int]]] = defaultdict(lambda: [[] for _ in range(n)])
    for centre in range(n):
        others = [atom for atom in range(n) if atom != centre]
        for atom in others:
            singles[species[atom]][centre].append(atom)
        for j, k in combinations(others, 2):
            pairs[min(species[j], species[k]), max(species[j], species[k])][centre] += [j, k]
    kinds = combinations_with_replacement(range(n_species), 2)
    flat_pairs = [_pad(pairs[kind]) for kind in kinds]
    return (
        tuple(_pad(rows) for rows in singles),
        tuple(table.reshape(n, table.shape[1] // 2, 2) for table in flat_pairs),
    )


def _pad(rows: list[list[int]]) -> np.ndarray:
    """Rows of unequal lengths as one array, padded with the row's own number."""
    width = max(len(row) for row in rows)
    return np.array([row + [number] * (width - len(row)) for number, row in enumerate(rows)], dtype=np.int64)


def aevs(config: AEVConfig, species: Tensor, positions: Tensor) -> Tensor:
    """AEVs of one structure; differentiable in `positions`, and batched over them by vmap.

    species: (n,) indices into `config.elements`; positions: (n,3) Å. Returns (n,D). Raises ValueError for an index
    outside the elements.
    """
    return aevs_of_neighbours(config, tables_of(config, species), positions)


def aev_jacobians(config: AEVConfig, species: Tensor, positions: Tensor) -> Tensor:
    """dAEV/dxyz of one structure; batched over positions by vmap.

    species: (n,) indices into `config.elements`; positions: (n,3) Å. Returns (n,D,n,3) in 1/Å. Raises ValueError for an
    index outside the elements.
    """
    return jacfwd(lambda moved: aevs(config, species, moved))(positions)


def neighbour_columns(config: AEVConfig) -> list[list[int]]:
    """Of an AEV's D terms, those that depend on where a neighbour of each species is: (S,B).

    B = R + S Q: the radial shells of its species, then for each species of third atoms the angular terms of both.
    """
    n_species, n_terms = len(config.elements), config.n_angular_radial * config.n_angular
    kinds = {pair: place for place, pair in enumerate(combinations_with_replacement(range(n_species), 2))}
    columns = []
    for s in range(n_species):
        starts = [n_species * config.n_radial + kinds[min(s, t), max(s, t)] * n_terms for t in range(n_species)]
        radial = range(s * config.n_radial, (s + 1) * config.n_radial)
        columns.append([*radial, *(column for start in starts for column in range(start, start + n_terms))])
    return columns


def tables_of(config: AEVConfig, species: Tensor) -> NeighbourTables:
    """The neighbour tables of one structure. species: (n,) indices into `config.elements`. Raises ValueError."""
    neighbours, pairs = neighbour_lists(checked_indices(config, species), len(config.elements))
    return NeighbourTables(
        tuple(torch.from_numpy(table).to(species.device) for table in neighbours),
        tuple(torch.from_numpy(table).to(species.device) for table in pairs),
    )


def checked_indices(config: AEVConfig, species: Tensor) -> tuple[int, ...]:
    """species (n,) as a tuple. Raises ValueError for an index outside the elements."""
    indices = tuple(species.tolist())
    if any(not 0 <= index < len(config.elements) for index in indices):
        raise ValueError(
            f"species must be indices into the {len(config.elements)} elements {config.elements}, got {indices}"
        )
    return indices
