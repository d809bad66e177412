"""What a batch feeds the networks, one kind for each way to forces.

# M structures, L fidelity levels, S species, N atoms a species (padded), R = S N rows of atoms, D AEV length
# P ordered pairs of atoms of one structure (padded), B terms of an AEV that depend on one neighbour
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pykinml_func.config import AEVConfig
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.aev import aevs_of_neighbours, neighbour_columns
from pykinml_func.types import NeighbourTables, Pullback


class CachedAEVs(NamedTuple):
    """AEVs alone: energy training."""

    aevs: Tensor
    """(S,N,D)"""

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:
        """The AEVs, and a function that raises TypeError."""

        def no_pullback(gradients: Tensor) -> Tensor:
            raise TypeError(
                f"forces need Jacobians or positions, got AEVs alone, for {config.elements} {tuple(gradients.shape)}"
            )

        return self.aevs, no_pullback


class CachedJacobians(NamedTuple):
    """AEVs and their derivatives: the `jacobian` force path."""

    aevs: Tensor
    """(S,N,D)"""
    jacobians: Tensor
    """(P,3,B) 1/Å, of `aev_kernel.pair_jacobians`; zero where padded"""
    centres: Tensor
    """(P,): the row of each pair's first atom"""
    neighbours: Tensor
    """(P,): the row of its second"""

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:
        """The AEVs, and the contraction with the cached dAEV/dxyz."""
        n_species, (n_networks, width) = len(config.elements), self.aevs.shape[:2]

        def contract(gradients: Tensor) -> Tensor:
            columns = torch.tensor(neighbour_columns(config), device=gradients.device).flatten()
            by_species = gradients.flatten(1, 2).index_select(2, columns).unflatten(2, (n_species, -1)).flatten(1, 2)
            by_pair = by_species.index_select(1, self.centres * n_species + self.neighbours // width % n_species)
            products = torch.einsum("lpb,pxb->lpx", by_pair, self.jacobians)
            out = gradients.new_zeros(len(gradients), n_networks * width, 3)
            # all that moves an atom's neighbours moves it the other way
            out = out.index_add(1, self.neighbours, products).index_add(1, self.centres, products, alpha=-1)
            return out.unflatten(1, (n_networks, width))

        return self.aevs, contract


class KnownAEVs(NamedTuple):
    """AEVs that were just computed from other features, for all that asks for them."""

    aevs: Tensor
    """(S,N,D)"""
    pullback: Pullback

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:  # noqa: ARG002 (as of all features)
        """Both, as they are."""
        return self.aevs, self.pullback


class Geometry(NamedTuple):
    """Coordinates: the `positions` force path, which computes AEVs in the step and stores no Jacobian."""

    positions: Tensor
    """(S,N,3) Å"""
    atoms: aev_kernel.Atoms

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:
        """AEVs of the positions, and their vector-Jacobian product."""
        shape, rows = self.positions.shape[:2], self.positions.flatten(0, 1)

        def pull(gradients: Tensor) -> Tensor:
            return aev_kernel.pull(config, self.atoms, rows, gradients.flatten(1, 2)).unflatten(1, shape)

        return aev_kernel.aevs(config, self.atoms, rows).unflatten(0, shape), pull


class TabulatedGeometry(NamedTuple):
    """Geometry where the compiled AEVs cannot run: on accelerators, and without a C++ compiler."""

    positions: Tensor
    """(S,N,3) Å"""
    tables: NeighbourTables

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:
        """AEVs of the positions, and their vector-Jacobian product."""
        shape = self.positions.shape[:2]

        def aevs_of(positions: Tensor) -> Tensor:
            return aevs_of_neighbours(config, self.tables, positions.flatten(0, 1)).unflatten(0, shape)

        aevs, pull, *_ = torch.func.vjp(aevs_of, self.positions)
        return aevs, lambda gradients: torch.stack([pull(gradient)[0] for gradient in gradients])
