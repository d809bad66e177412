"""A chain of fidelity levels: each level's network is fed the AEV and the atomic energy of the level below.

PyKinML's CompositeNetworks_MF for any number of levels, but that the energy handed up holds no self energy: PyKinML
hands up about -1035 eV for a carbon, which no network can use.
# L fidelity levels, lowest first, D AEV length
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykinml_func.config import ModelConfig
from pykinml_func.potential.mlp import atomic_energy, atomic_energy_and_gradient
from pykinml_func.types import Networks


def input_length(model_config: ModelConfig, level: int) -> int:
    """Length of what the networks of `level` (0: the lowest) see."""
    if level == 0:
        return model_config.aev.length
    return model_config.aev.length * model_config.pass_aev + model_config.pass_energy


def chain_energies(model_config: ModelConfig, networks: tuple[Networks, ...], aev: Tensor) -> Tensor:
    """Energies of one atom at each level, self energies excluded.

    e_0 = NN_0(aev), e_k = NN_k(aev, e_{k-1}) + e_{k-1}; `pass_aev`, `pass_energy` and `sum_levels` each leave a part
    out. networks: one element's layers, no species axis, for each level; aev: (D,). Returns (L,) eV.
    """
    energies = [atomic_energy(model_config.activations, networks[0], aev)]
    for network in networks[1:]:
        own = atomic_energy(model_config.activations, network, _seen(model_config, aev, energies[-1]))
        energies.append(own + energies[-1] if model_config.sum_levels else own)
    return torch.stack(energies)


def chain_energies_and_gradients(
    model_config: ModelConfig, networks: tuple[Networks, ...], aev: Tensor
) -> tuple[Tensor, Tensor]:
    """Energies of one atom at each level, and their derivatives by its AEV. Arguments as `chain_energies`. Returns (L,)
    and (L,D) eV.
    """
    energies, gradients = _each_level(model_config, networks, aev)
    return torch.stack(energies), torch.stack(gradients)


def highest_energy_and_gradient(
    model_config: ModelConfig, networks: tuple[Networks, ...], aev: Tensor
) -> tuple[Tensor, Tensor]:
    """Those of the highest level alone. Returns () and (D,) eV."""
    energies, gradients = _each_level(model_config, networks, aev)
    return energies[-1], gradients[-1]


def _each_level(
    model_config: ModelConfig, networks: tuple[Networks, ...], aev: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    activations = model_config.activations
    lowest = atomic_energy_and_gradient(activations, networks[0], aev)
    energies, gradients = [lowest[0]], [lowest[1]]
    for network in networks[1:]:
        below, slope = energies[-1], gradients[-1]
        own, by_seen = atomic_energy_and_gradient(activations, network, _seen(model_config, aev, below))
        gradient = by_seen[: len(aev)] if model_config.pass_aev else torch.zeros_like(aev)
        if model_config.pass_energy:
            gradient = gradient + by_seen[-1] * slope
        energies.append(own + below if model_config.sum_levels else own)
        gradients.append(gradient + slope if model_config.sum_levels else gradient)
    return energies, gradients


def _seen(model_config: ModelConfig, aev: Tensor, below: Tensor) -> Tensor:
    """What a level's network sees. aev: (D,); below: (), the energy of the level below."""
    return torch.cat([aev] * model_config.pass_aev + [below.unsqueeze(0)] * model_config.pass_energy)
