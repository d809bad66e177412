"""A model made ready for one molecule, which comes again and again with other positions.

# E members, L fidelity levels, S species, N atoms a species (padded), n atoms of the molecule
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.data.batching import Packer, Source
from pykinml_func.potential.domain import squared_distance
from pykinml_func.potential.energy import packing_of
from pykinml_func.potential.ensemble import member_energies_and_forces
from pykinml_func.potential.features import Geometry, KnownAEVs, TabulatedGeometry
from pykinml_func.potential.hessian import member_hessians
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.types import Ensemble, Params


class Molecule:
    """What of the evaluation depends on the species alone is made once, and steps that come often are recorded."""

    def __init__(self, ensemble: Ensemble, species: np.ndarray) -> None:
        """species: (n,) indices into the elements."""
        weight, n_species = ensemble.members.networks[0].weights[0], len(ensemble.model_config.aev.elements)
        n = len(species)
        source = Source(species, np.zeros((n, 3)), np.array([0, n]), n_species, np.zeros((1, 1)))
        batch: Any = Packer(source, np.array([0]), 1, weight.dtype, weight.device).pack(np.array([0]))
        slots, mask = (each.numpy() for each in packing_of(torch.from_numpy(species), n_species))
        self._like = weight
        self._slots = slots
        """(S,N): which atom sits in each place"""
        self._rows = np.flatnonzero(mask)[slots[mask].argsort()]
        """(n,): the place of each atom in the flattened (S,N)"""
        self._self_energies = ensemble.members.self_energies[:, -1, species].sum(dim=1).cpu().numpy()
        """(E,) eV"""
        self.step = RecordedStep(partial(_evaluate, ensemble, batch.features, torch.from_numpy(mask).to(weight)))
        self.hessian_step = RecordedStep(partial(_mean_hessian, ensemble, torch.from_numpy(species).to(weight.device)))

    def evaluate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Energies (E,) eV and forces (E,n,3) eV/Å of every member at the highest level, and the distance from the
        domain (see `potential.domain`), NaN where there is none. positions: (n,3) Å.
        """
        # seen from an atom, so that float32 keeps its digits for distances
        packed = (positions - positions[0])[self._slots]
        energies, forces, *square = self.step(torch.from_numpy(packed).to(self._like))
        by_atom = forces.flatten(1, 2).cpu().numpy()[:, self._rows].astype(np.float64, copy=False)
        distance = math.sqrt(square[0].item()) if square else math.nan
        return energies.cpu().numpy() + self._self_energies, by_atom, distance

    def hessian(self, positions: np.ndarray) -> np.ndarray:
        """(3n,3n) eV/Å² of the mean energy, in float64. positions: (n,3) Å."""
        found: Tensor = self.hessian_step(torch.from_numpy(positions - positions[0]).to(self._like.device))
        return found.cpu().numpy()


def _evaluate(
    ensemble: Ensemble, features: Geometry | TabulatedGeometry, mask: Tensor, positions: Tensor
) -> tuple[Tensor, ...]:
    """Energies (E,) eV, self energies excluded, forces (E,S,N,3) eV/Å and, where there is a domain, its squared
    distance ().

    features: those of other positions; mask: (S,N) 1 where there is an atom; positions: (S,N,3) Å.
    """
    config, domain = ensemble.model_config, ensemble.domain
    known = KnownAEVs(*features._replace(positions=positions).aevs_and_pullback(config.aev))
    found = member_energies_and_forces(config, ensemble.members.networks, known, mask)
    if domain is None:
        return found
    return *found, squared_distance(domain, mask, known.aevs)


def _mean_hessian(ensemble: Ensemble, species: Tensor, positions: Tensor) -> Tensor:
    """(3n,3n) eV/Å². species: (n,); positions: (n,3) Å."""
    members: Params = tree_map(Tensor.double, ensemble.members)
    found = member_hessians(ensemble.model_config, members, species, positions)
    return found.mean(dim=0).flatten(2).flatten(0, 1)
