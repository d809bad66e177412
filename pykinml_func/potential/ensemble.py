"""Several models of one kind evaluated at once: a leading member axis on every parameter, and vmap over it and species.

# E members, S species, N atoms a species (padded)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.potential.energy import highest_energies_and_gradients
from pykinml_func.types import Features, Networks, Params


def stack_members(members: Sequence[Params]) -> Params:
    """The parameters of models of one config, each leaf with a leading axis E."""
    stacked: Params = tree_map(lambda *leaves: torch.stack(leaves), *members)
    return stacked


def member_energies_and_forces(
    model_config: ModelConfig, networks: tuple[Networks, ...], features: Features, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Energy and forces of one structure by every member at the highest level, self energies excluded.

    networks: stacked; mask: (S,N) 1 where there is an atom. Returns (E,) eV and (E,S,N,3) eV/Å.
    """
    aevs, pullback = features.aevs_and_pullback(model_config.aev)
    members_and_species = networks[0].weights[0].shape[:2]
    # one vmap over both, since each leaves views between the operations, which cost as much as these
    flat = tree_map(lambda leaf: leaf.flatten(0, 1), networks)
    repeated = aevs.expand(members_and_species[0], *aevs.shape).flatten(0, 1)
    energies, gradients = highest_energies_and_gradients(model_config, flat, repeated)
    totals = energies.unflatten(0, members_and_species).flatten(1) @ mask.flatten()
    return totals, -pullback(gradients.unflatten(0, members_and_species))
