"""Several models of one kind evaluated at once: a leading member axis on every parameter, and vmap over it.

# E members, S species, N atoms a species (padded)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.potential.energy import atomic_energies_and_gradients
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
    atomic, gradients = vmap(atomic_energies_and_gradients, in_dims=(None, 0, None))(model_config, networks, aevs)
    return (atomic[..., -1] * mask).sum(dim=(1, 2)), -pullback(gradients[..., -1, :])
