"""Energies: stacked element networks evaluated by vmap over species, summed over the atoms of each structure.

# M structures, L fidelity levels, S species, N atoms a species (padded), D AEV length, n atoms of one structure
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from pykinml_func.config import ModelConfig
from pykinml_func.potential.aev import aevs_of_neighbours, tables_of
from pykinml_func.potential.multifidelity import (
    chain_energies,
    chain_energies_and_gradients,
    highest_energy_and_gradient,
    input_length,
)
from pykinml_func.types import Networks, Params


def init_params(model_config: ModelConfig, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Params:
    """Networks drawn uniformly from ±1/sqrt(in), torch's rule for a linear layer; self energies zero."""
    n_species = len(model_config.aev.elements)

    def uniform(fan_in: int, *shape: int) -> Tensor:
        draw = torch.rand(n_species, *shape, generator=generator, dtype=torch.float64)
        return ((2 * draw - 1) / math.sqrt(fan_in)).to(dtype)

    def one_level(level: int) -> Networks:
        layers = list(pairwise((input_length(model_config, level), *model_config.neurons)))
        weights = tuple(uniform(fan_in, fan_out, fan_in) for fan_in, fan_out in layers)
        biases = tuple(uniform(fan_in, fan_out) for fan_in, fan_out in layers) if model_config.biases else ()
        return Networks(weights, biases)

    n_levels = model_config.n_levels
    networks = tuple(one_level(level) for level in range(n_levels))
    return Params(networks, torch.zeros(n_levels, n_species, dtype=torch.float64))


def atomic_energies(model_config: ModelConfig, networks: tuple[Networks, ...], aevs: Tensor) -> Tensor:
    """Energies of packed atoms at each level, self energies excluded. aevs: (S,N,D). Returns (S,N,L) eV."""

    def one_atom(networks: tuple[Networks, ...], aev: Tensor) -> Tensor:
        return chain_energies(model_config, networks, aev)

    energies: Tensor = vmap(vmap(one_atom, in_dims=(None, 0)))(networks, aevs)
    return energies


def atomic_energies_and_gradients(
    model_config: ModelConfig, networks: tuple[Networks, ...], aevs: Tensor
) -> tuple[Tensor, Tensor]:
    """Energies of packed atoms at each level, self energies excluded, and dE/dAEV. aevs: (S,N,D). Returns (S,N,L) and
    (S,N,L,D) eV.
    """

    def one_atom(networks: tuple[Networks, ...], aev: Tensor) -> tuple[Tensor, Tensor]:
        return chain_energies_and_gradients(model_config, networks, aev)

    energies, gradients = vmap(vmap(one_atom, in_dims=(None, 0)))(networks, aevs)
    return energies, gradients


def highest_energies_and_gradients(
    model_config: ModelConfig, networks: tuple[Networks, ...], aevs: Tensor
) -> tuple[Tensor, Tensor]:
    """As `atomic_energies_and_gradients`, of the highest level alone. Returns (S,N) and (S,N,D) eV."""

    def one_atom(networks: tuple[Networks, ...], aev: Tensor) -> tuple[Tensor, Tensor]:
        return highest_energy_and_gradient(model_config, networks, aev)

    energies, gradients = vmap(vmap(one_atom, in_dims=(None, 0)))(networks, aevs)
    return energies, gradients


def sum_by_structure(per_atom: Tensor, structure_index: Tensor, n_structures: int) -> Tensor:
    """Sum over the atoms of each structure. per_atom: (S,N,L); structure_index: (S,N), n_structures where padded.
    Returns (M,L).
    """
    zeros = per_atom.new_zeros(n_structures + 1, per_atom.shape[2])
    return zeros.index_add(0, structure_index.flatten(), per_atom.flatten(0, 1))[:n_structures]


def level_energies(model_config: ModelConfig, params: Params, species: Tensor, positions: Tensor) -> Tensor:
    """Potential energies of one structure at each of `model_config.fidelities`, self energies included.

    Pure: grad, jacrev, hessian and vmap work on `params` and `positions`. species: (n,) indices into the elements;
    positions: (n,3) Å. Returns (L,) eV in float64. Raises ValueError for an index outside the elements.
    """
    tables = tables_of(model_config.aev, species)
    slots, mask = packing_of(species, len(model_config.aev.elements))
    # centred, so that float32 keeps its digits for distances
    centred = (positions - positions.mean(dim=0)).to(params.networks[0].weights[0].dtype)
    aevs = aevs_of_neighbours(model_config.aev, tables, centred)
    atomic = atomic_energies(model_config, params.networks, aevs[slots])
    return (atomic * mask.unsqueeze(-1)).sum(dim=(0, 1)).double() + params.self_energies[:, species].sum(dim=1)


def energy(model_config: ModelConfig, params: Params, species: Tensor, positions: Tensor) -> Tensor:
    """Potential energy of one structure at the highest level, self energies included; a model of delta learning
    gives the difference to its baseline.

    Arguments, purity and errors as `level_energies`. Returns () eV in float64.
    """
    return level_energies(model_config, params, species, positions)[-1]


def packing_of(species: Tensor, n_species: int) -> tuple[Tensor, Tensor]:
    """Which atom of one structure sits in each packed slot (S,N), 0 where there is none; and whether there is one."""
    slots, mask = _packing(tuple(species.tolist()), n_species)
    return torch.from_numpy(slots).to(species.device), torch.from_numpy(mask).to(species.device)


@lru_cache(maxsize=4096)
def _packing(species: tuple[int, ...], n_species: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrays, not tensors: a tensor made inside grad or vmap would be kept with that transform's wrapper around it."""
    members = [[atom for atom, kind in enumerate(species) if kind == s] for s in range(n_species)]
    width = max(len(atoms) for atoms in members)
    slots = np.array([atoms + [0] * (width - len(atoms)) for atoms in members])
    mask = np.array([[slot < len(atoms) for slot in range(width)] for atoms in members])
    return slots, mask
