"""Hessians: exact second derivatives of the energy by positions.

d²E/dx² = J^T (d²E/dAEV²) J + sum_k dE/dAEV_k d²AEV_k/dx², with J = dAEV/dx: the first term by torch.func, the AEVs'
derivatives by `aev_derivatives`.
# E members, n atoms of one structure, S species, D AEV length
"""

from __future__ import annotations

from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.potential.aev import aevs
from pykinml_func.potential.aev_derivatives import absolute, relative_curvatures, relative_jacobians, surroundings
from pykinml_func.potential.energy import energy
from pykinml_func.potential.multifidelity import highest_energy_and_gradient
from pykinml_func.types import Networks, Params


def hessian(model_config: ModelConfig, params: Params, species: Tensor, positions: Tensor) -> Tensor:
    """Second derivatives of `energy`, in the precision of the networks; batched over positions and params by vmap.

    species: (n,) indices into the elements; positions: (n,3) Å. Returns (n,3,n,3) eV/Å² in float64. At beta = 1 the
    energy has a cusp where three atoms are collinear: what it bends by there is left out. Raises ValueError for an
    index outside the elements.
    """
    config = model_config.aev
    centred = (positions - positions.mean(dim=0)).to(params.networks[0].weights[0].dtype)
    around = surroundings(config, species, centred)
    jacobians = relative_jacobians(config, species, *around)
    of_atoms = tree_map(lambda leaf: leaf[species], params.networks)

    def one_atom(networks: tuple[Networks, ...], aev: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        return _gradient_and_curvature(model_config, networks, aev, jacobian)

    gradients, curvatures = vmap(one_atom)(of_atoms, aevs(config, species, centred), jacobians.flatten(1, 2))
    curvatures = curvatures.unflatten(2, (-1, 3)).unflatten(1, (-1, 3))
    return absolute(curvatures + relative_curvatures(config, species, *around, gradients)).double()


def member_hessians(model_config: ModelConfig, members: Params, species: Tensor, positions: Tensor) -> Tensor:
    """The `hessian` of every member of an ensemble; that of their mean energy is the mean of these.

    members: stacked (see `ensemble.stack_members`). Returns (E,n,3,n,3) eV/Å². Raises as `hessian`.
    """
    found: Tensor = vmap(lambda params: hessian(model_config, params, species, positions))(members)
    return found


def hessian_vector_product(
    model_config: ModelConfig, params: Params, species: Tensor, positions: Tensor, vector: Tensor
) -> Tensor:
    """`hessian` times a vector, in the time of a few forces. vector: (n,3). Returns (n,3) eV/Å² times its unit. Raises
    as `hessian`.
    """

    def slope(moved: Tensor) -> Tensor:
        return (grad(energy, argnums=3)(model_config, params, species, moved) * vector).sum()

    return grad(slope)(positions)


def _gradient_and_curvature(
    model_config: ModelConfig, networks: tuple[Networks, ...], aev: Tensor, jacobian: Tensor
) -> tuple[Tensor, Tensor]:
    """dE/dAEV (D,) of one atom, and J^T (d²E/dAEV²) J (3n,3n). networks: one element's; aev: (D,); jacobian: J^T
    (3n,D).
    """

    def gradient_at(aev: Tensor) -> Tensor:
        return highest_energy_and_gradient(model_config, networks, aev)[1]

    gradient, pull, *_ = vjp(gradient_at, aev)  # a second derivative is symmetric: pulled back is pushed forward
    return gradient, vmap(lambda row: pull(row)[0])(jacobian) @ jacobian.T
