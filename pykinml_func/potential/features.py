"""What a batch feeds the networks, one kind for each way to forces.

# M structures, S species, N atoms a species (padded), n atoms of the largest structure, D AEV length
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pykinml_func.config import AEVConfig
from pykinml_func.potential.aev import aevs_of_neighbours
from pykinml_func.types import NeighbourTables, Pullback


class CachedAEVs(NamedTuple):
    """AEVs alone: energy training."""

    aevs: Tensor
    """(S,N,D)"""

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:
        """The AEVs, and a function that raises TypeError."""

        def no_pullback(gradient: Tensor) -> Tensor:
            raise TypeError(
                f"forces need Jacobians or positions, got AEVs alone, for {config.elements} {tuple(gradient.shape)}"
            )

        return self.aevs, no_pullback


class CachedJacobians(NamedTuple):
    """AEVs and their derivatives: the `jacobian` force path."""

    aevs: Tensor
    """(S,N,D)"""
    jacobians: Tensor
    """(M, n*D, 3n) 1/Å, zero where padded"""
    slots: Tensor
    """(M,n): the place of each structure's atoms in the S*N packed ones"""
    rows: Tensor
    """(S*N,): the inverse, a packed atom's place in the M*n"""

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:  # noqa: ARG002 (the AEVs are there)
        """The AEVs, and the contraction with the cached dAEV/dxyz."""

        def contract(gradient: Tensor) -> Tensor:
            by_structure = gradient.flatten(0, 1)[self.slots].flatten(1)
            products = torch.einsum("mk,mkx->mx", by_structure, self.jacobians)
            return products.reshape(-1, 3)[self.rows].unflatten(0, gradient.shape[:2])

        return self.aevs, contract


class Geometry(NamedTuple):
    """Coordinates: the `positions` force path, which computes AEVs in the step and stores no Jacobian."""

    positions: Tensor
    """(S,N,3) Å"""
    tables: NeighbourTables

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[Tensor, Pullback]:
        """AEVs of the positions, and their vector-Jacobian product."""
        shape = self.positions.shape[:2]

        def aevs_of(positions: Tensor) -> Tensor:
            return aevs_of_neighbours(config, self.tables, positions.flatten(0, 1)).unflatten(0, shape)

        aevs, pull, *_ = torch.func.vjp(aevs_of, self.positions)
        return aevs, lambda gradient: pull(gradient)[0]
