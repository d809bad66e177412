"""Several models of one kind evaluated at once: a leading member axis on every parameter, and vmap over it and species.

# E members, M structures, L fidelity levels, S species, N atoms a species (padded), D AEV length
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.potential.energy import (
    atomic_energies,
    atomic_energies_and_gradients,
    highest_energies_and_gradients,
    sum_by_structure,
)
from pykinml_func.types import Features, Networks, Params


def stack_members(members: Sequence[Params]) -> Params:
    """The parameters of models of one config, each leaf with a leading axis E."""
    stacked: Params = tree_map(lambda *leaves: torch.stack(leaves), *members)
    return stacked


def n_members_of(params: Params) -> int:
    """How many members stand side by side in `params`, which may be those of one model."""
    return len(params.self_energies) if params.self_energies.ndim == 3 else 1


def as_members(params: Params) -> Params:
    """With a leading axis E, also for one model."""
    return params if params.self_energies.ndim == 3 else stack_members([params])


def as_params(members: Params) -> Params:
    """The inverse of `as_members`: without the axis for one model."""
    return members if len(members.self_energies) > 1 else member_of(members, 0)


def member_of(members: Params, place: int) -> Params:
    """The parameters of one member."""
    alone: Params = tree_map(lambda leaf: leaf[place], members)
    return alone


def flat_members(networks: tuple[Networks, ...]) -> tuple[Networks, ...]:
    """The networks of all members, of axes (E,S,...), on one axis E S: one vmap goes over both, since each leaves views
    between the operations, which cost as much as these.
    """
    flat: tuple[Networks, ...] = tree_map(lambda leaf: leaf.flatten(0, 1), networks)
    return flat


def member_batch_energies(
    model_config: ModelConfig,
    networks: tuple[Networks, ...],
    features: Features,
    structure_index: Tensor,
    n_structures: int,
) -> Tensor:
    """`forces.batch_energies` by every member. networks: stacked. Returns (E,M,L) eV."""
    aevs, _ = features.aevs_and_pullback(model_config.aev)
    atomic = atomic_energies(model_config, flat_members(networks), _repeated(aevs, networks))
    return _member_sums(_unflat(atomic, networks), structure_index, n_structures)


def member_batch_energies_and_forces(
    model_config: ModelConfig,
    networks: tuple[Networks, ...],
    features: Features,
    structure_index: Tensor,
    n_structures: int,
) -> tuple[Tensor, Tensor]:
    """`forces.batch_energies_and_forces` by every member. networks: stacked. Returns (E,M,L) eV and (E,S,N,L,3) eV/Å.

    Raises TypeError for features that hold AEVs alone.
    """
    aevs, pullback = features.aevs_and_pullback(model_config.aev)
    flat = flat_members(networks)
    atomic, gradients = atomic_energies_and_gradients(model_config, flat, _repeated(aevs, networks))
    by_level = _unflat(gradients, networks).movedim(3, 1)
    forces = -pullback(by_level.flatten(0, 1)).unflatten(0, by_level.shape[:2]).movedim(1, 3)
    return _member_sums(_unflat(atomic, networks), structure_index, n_structures), forces


def member_energies_and_forces(
    model_config: ModelConfig, networks: tuple[Networks, ...], features: Features, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Energy and forces of one structure by every member at the highest level, self energies excluded.

    networks: stacked; mask: (S,N) 1 where there is an atom. Returns (E,) eV and (E,S,N,3) eV/Å.
    """
    aevs, pullback = features.aevs_and_pullback(model_config.aev)
    energies, gradients = highest_energies_and_gradients(
        model_config, flat_members(networks), _repeated(aevs, networks)
    )
    totals = _unflat(energies, networks).flatten(1) @ mask.flatten()
    return totals, -pullback(_unflat(gradients, networks))


def _repeated(aevs: Tensor, networks: tuple[Networks, ...]) -> Tensor:
    """The same AEVs (S,N,D) for every member: (E S,N,D)."""
    return aevs.expand(len(networks[0].weights[0]), *aevs.shape).flatten(0, 1)


def _unflat(values: Tensor, networks: tuple[Networks, ...]) -> Tensor:
    """values: (E S,...). Returns (E,S,...)."""
    return values.unflatten(0, networks[0].weights[0].shape[:2])


def _member_sums(atomic: Tensor, structure_index: Tensor, n_structures: int) -> Tensor:
    """`sum_by_structure` of every member. atomic: (E,S,N,L). Returns (E,M,L)."""
    side_by_side = atomic.movedim(0, 2)
    sums = sum_by_structure(side_by_side.flatten(2), structure_index, n_structures)
    return sums.unflatten(1, side_by_side.shape[2:]).movedim(1, 0)
