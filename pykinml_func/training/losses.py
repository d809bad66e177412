"""The training loss, from sums divided once by the count of the whole batch.

# M structures, S species, N atoms a species (padded)
"""

from __future__ import annotations

from torch import Tensor

from pykinml_func.types import Batch


def energy_loss(batch: Batch, energies: Tensor) -> Tensor:
    """Mean squared error of the energies. energies: (M,) eV. Returns () eV²."""
    errors = (energies - batch.energies) * batch.structure_mask
    return (errors * errors).sum() / batch.structure_mask.sum()


def force_loss(batch: Batch, forces: Tensor) -> Tensor:
    """Mean over structures of each one's mean squared error of its 3n components. forces: (S,N,3) eV/Å. Returns ()
    eV²/Å².
    """
    if batch.forces is None or batch.component_weights is None:
        raise TypeError("a force loss needs a batch with forces, got one without")
    errors = forces - batch.forces
    return ((errors * errors).sum(dim=-1) * batch.component_weights).sum() / batch.structure_mask.sum()


def weighted_loss(energy: Tensor, force: Tensor, force_weight: float) -> Tensor:
    """(1 - w) energy loss + w force loss, PyKinML's fixed weighting. Returns ()."""
    return (1 - force_weight) * energy + force_weight * force
