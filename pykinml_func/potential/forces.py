"""Forces: -dE/dAEV contracted with dAEV/dxyz.

# M structures, L fidelity levels, S species, N atoms a species (padded), D AEV length, n atoms of one structure
"""

from __future__ import annotations

from torch import Tensor
from torch.func import grad_and_value, jacrev

from pykinml_func.config import ModelConfig
from pykinml_func.potential.energy import (
    atomic_energies,
    atomic_energies_and_gradients,
    energy,
    level_energies,
    sum_by_structure,
)
from pykinml_func.types import Features, Networks, Params


def energy_and_forces(
    model_config: ModelConfig, params: Params, species: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Energy at the highest level and its negative gradient. species: (n,); positions: (n,3) Å. Returns () eV and (n,3)
    eV/Å. Raises as `energy`.
    """
    gradient, value = grad_and_value(energy, argnums=3)(model_config, params, species, positions)
    return value, -gradient


def level_energies_and_forces(
    model_config: ModelConfig, params: Params, species: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Energy at each of `model_config.fidelities` and its negative gradient. species: (n,); positions: (n,3) Å. Returns
    (L,) eV and (L,n,3) eV/Å. Raises as `level_energies`.
    """

    def twice(positions: Tensor) -> tuple[Tensor, Tensor]:
        energies = level_energies(model_config, params, species, positions)
        return energies, energies

    jacobian, energies = jacrev(twice, has_aux=True)(positions)
    return energies, -jacobian


def batch_energies(
    model_config: ModelConfig,
    networks: tuple[Networks, ...],
    features: Features,
    structure_index: Tensor,
    n_structures: int,
) -> Tensor:
    """Energies of packed structures at each level, self energies excluded. Returns (M,L) eV."""
    aevs, _ = features.aevs_and_pullback(model_config.aev)
    return sum_by_structure(atomic_energies(model_config, networks, aevs), structure_index, n_structures)


def batch_energies_and_forces(
    model_config: ModelConfig,
    networks: tuple[Networks, ...],
    features: Features,
    structure_index: Tensor,
    n_structures: int,
) -> tuple[Tensor, Tensor]:
    """Energies and forces of packed structures at each level, self energies excluded. Returns (M,L) eV and (S,N,L,3)
    eV/Å.

    Raises TypeError for features that hold AEVs alone.
    """
    aevs, pullback = features.aevs_and_pullback(model_config.aev)
    atomic, gradients = atomic_energies_and_gradients(model_config, networks, aevs)
    forces = -pullback(gradients.movedim(2, 0)).movedim(0, 2)
    return sum_by_structure(atomic, structure_index, n_structures), forces
