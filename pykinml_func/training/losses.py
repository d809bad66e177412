"""The training loss, from sums divided once by the count of the whole batch.

A batch may be one rank's share of a whole one: the losses of all shares add up to that of the whole, and so do their
gradients. A task is the energies or the forces of one fidelity level; a missing label adds nothing to sums or counts.
# M structures, L fidelity levels, S species, N atoms a species (padded), T tasks
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykinml_func.types import Batch


def energy_loss(batch: Batch, energies: Tensor) -> Tensor:
    """Mean squared error of the energies of each level. energies: (M,L) eV. Returns (L,) eV², 0 without labels."""
    errors = (energies - batch.energies) * batch.energy_mask
    return (errors * errors).sum(dim=0) / batch.n_energies.clamp(min=1)


def force_loss(batch: Batch, forces: Tensor) -> Tensor:
    """Mean over structures of each one's mean squared error of its 3n components, for each level.

    forces: (S,N,L,3) eV/Å. Returns (L,) eV²/Å², 0 without labels.
    """
    if batch.forces is None or batch.component_weights is None or batch.n_forces is None:
        raise TypeError("a force loss needs a batch with forces, got one without")
    errors = forces - batch.forces
    sums = ((errors * errors).sum(dim=-1) * batch.component_weights).sum(dim=(0, 1))
    return sums / batch.n_forces.clamp(min=1)


def weighted_loss(energy: Tensor, force: Tensor, force_weight: float | Tensor) -> Tensor:
    """Sum over levels of (1 - w) energy loss + w force loss, PyKinML's fixed weighting. energy, force: (L,). Returns
    ().
    """
    return ((1 - force_weight) * energy + force_weight * force).sum()


def learned_loss(losses: Tensor, labelled: Tensor, log_variances: Tensor, share: float | Tensor = 1) -> Tensor:
    """Sum over tasks of exp(-s) loss + s, with s learned: Kendall, Gal and Cipolla, CVPR 2018, doi
    10.1109/CVPR.2018.00781, eq. 7, less the factor 1/2 that all terms share, as in PyKinML.

    losses, log_variances (s): (T,); labelled: (T,) whether the whole batch has labels of the task, without which its s
    would fall at no price; share: part of s that counts here, see `Batch.share`. Returns ().
    """
    return ((torch.exp(-log_variances) * losses + share * log_variances) * labelled).sum()
