"""PyKinML's Jacobians in batches of mixed sizes: those of other atoms than the dE/dAEV that they are multiplied with.

PyKinML 1.1.2 pads each structure's list of Jacobians to the most atoms of an element in the set, but not the list of
dE/dAEV, so that most atoms meet the Jacobian of another one. `bench.parity` repeats it to follow PyKinML's runs.

# M structures, n atoms of the largest, S species, N atoms a species (padded)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pykinml_func.config.aev import AEVConfig
from pykinml_func.types import Batch, Features, Pullback


class MisalignedJacobians(NamedTuple):
    """Features whose dE/dAEV meet the Jacobians that PyKinML gives them.

    The gradient of packed atom j is pulled back as if it were that of atom `partner[j]`, and what comes out is booked
    on the atoms of j's structure that have the partner's structure's places. Partners sit in an earlier structure of
    the batch, `lag` of them back.
    """

    features: Features
    partner: torch.Tensor
    """(S*N,) packed atom whose Jacobian is used"""
    weight: torch.Tensor
    """(lags, S*N) 1 where the partner's structure is `lag` before the atom's own; 0 everywhere for padding"""
    place: torch.Tensor
    """(S*N,) of an atom among the M*n of (structure, place in structure); M*n for padding"""
    n_structures: int
    largest: int

    def aevs_and_pullback(self, config: AEVConfig) -> tuple[torch.Tensor, Pullback]:
        """The right AEVs, and the pullback with Jacobians out of line."""
        aevs, pull = self.features.aevs_and_pullback(config)
        n_places = self.n_structures * self.largest

        def misaligned(gradient: torch.Tensor) -> torch.Tensor:
            flat = gradient.flatten(0, 1)
            total = flat.new_zeros(n_places, 3)
            for lag, weight in enumerate(self.weight):
                moved = torch.zeros_like(flat).index_add(0, self.partner, flat * weight.unsqueeze(1))
                pulled = pull(moved.view_as(gradient).unsqueeze(0))[0].flatten(0, 1)
                booked = flat.new_zeros(n_places + 1, 3).index_add(0, self.place, pulled)[:-1]
                total = total + booked.roll(lag * self.largest, dims=0)
            return torch.cat([total, total.new_zeros(1, 3)])[self.place].unflatten(0, gradient.shape[:2])

        return aevs, lambda gradients: torch.stack([misaligned(gradient) for gradient in gradients])


def misalign(batch: Batch, padded_counts: np.ndarray) -> Batch:
    """The batch with PyKinML's pairing of gradients and Jacobians. padded_counts: (S,) entries that each structure's
    list is padded to.
    """
    structure = batch.structure_index.numpy()
    n_structures = len(batch.energy_mask)
    n_species, width = structure.shape
    counts = np.stack([np.bincount(row, minlength=n_structures + 1)[:n_structures] for row in structure])
    firsts = np.cumsum(counts, axis=1) - counts
    partner, lag = np.zeros((2, n_species, width), dtype=np.int64)
    lag[:] = -1
    for s in range(n_species):
        for j in range(counts[s].sum()):
            owner, within = divmod(j, padded_counts[s])
            if within < counts[s, owner]:
                partner[s, j] = s * width + firsts[s, owner] + within
                lag[s, j] = structure[s, j] - owner
    weight = np.stack([lag.flatten() == k for k in range(max(0, lag.max()) + 1)]).astype(float)
    place, largest = _places(structure, n_structures)
    pairing = [torch.from_numpy(array) for array in (partner.flatten(), weight, place)]
    features = MisalignedJacobians(batch.features, pairing[0], pairing[1], pairing[2], n_structures, largest)
    return batch._replace(features=features)


def _places(structure: np.ndarray, n_structures: int) -> tuple[np.ndarray, int]:
    """Packed atoms' places among (structure, place in structure), and the largest structure's size.

    Formula order puts a structure's atoms species by species, which is the order of the packed ones.
    """
    flat = structure.flatten()
    sizes = np.bincount(flat, minlength=n_structures + 1)[:n_structures]
    place = np.full_like(flat, n_structures * sizes.max())
    for m in range(n_structures):
        members = np.flatnonzero(flat == m)
        place[members] = m * sizes.max() + np.arange(len(members))
    return place, int(sizes.max())
