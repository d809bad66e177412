"""Forces: -dE/dAEV contracted with dAEV/dxyz.

# M structures, S species, N atoms a species (padded), D AEV length
"""

from __future__ import annotations

from torch import Tensor
from torch.func import grad_and_value

from pykinml_func.config import ModelConfig
from pykinml_func.potential.energy import atomic_energies, energy, sum_by_structure
from pykinml_func.types import Features, Networks, Params


def energy_and_forces(
    model_config: ModelConfig, params: Params, species: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Energy and its negative gradient. species: (n,); positions: (n,3) Å. Returns () eV and (n,3) eV/Å. Raises as
    `energy`.
    """
    gradient, value = grad_and_value(energy, argnums=3)(model_config, params, species, positions)
    return value, -gradient


def batch_energies(
    model_config: ModelConfig, networks: Networks, features: Features, structure_index: Tensor, n_structures: int
) -> Tensor:
    """Energies of packed structures, self energies excluded. Returns (M,) eV."""
    aevs, _ = features.aevs_and_pullback(model_config.aev)
    return sum_by_structure(atomic_energies(model_config, networks, aevs), structure_index, n_structures)


def batch_energies_and_forces(
    model_config: ModelConfig, networks: Networks, features: Features, structure_index: Tensor, n_structures: int
) -> tuple[Tensor, Tensor]:
    """Energies and forces of packed structures, self energies excluded. Returns (M,) eV and (S,N,3) eV/Å.

    Raises TypeError for features that hold AEVs alone.
    """
    aevs, pullback = features.aevs_and_pullback(model_config.aev)

    def total(aevs: Tensor) -> tuple[Tensor, Tensor]:
        atomic = atomic_energies(model_config, networks, aevs)
        return atomic.sum(), atomic

    gradient, (_, atomic) = grad_and_value(total, has_aux=True)(aevs)
    return sum_by_structure(atomic, structure_index, n_structures), -pullback(gradient)
