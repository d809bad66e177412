"""Single-atom energies (SAEs): the part of an energy that its composition explains, by least squares.

As in PyKinML (doi 10.1021/acs.jpca.3c07872), but fitted to the training structures alone.
# M structures, S species
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SelfEnergyFit(NamedTuple):
    """SAEs, and whether the compositions determined them."""

    self_energies: Tensor
    """(S,) eV"""
    rank: int
    """independent compositions; below S the fit is the one of minimum norm"""


def fit_self_energies(counts: Tensor, energies: Tensor) -> SelfEnergyFit:
    """Minimise |counts @ SAE - energies|, taking the SAEs of least norm if many do.

    counts: (M,S) atoms of each element; energies: (M,) eV.
    """
    counts, energies = counts.double(), energies.double()
    distinct, membership, multiplicity = torch.unique(counts, dim=0, return_inverse=True, return_counts=True)
    means = energies.new_zeros(len(distinct)).index_add(0, membership, energies) / multiplicity
    root = multiplicity.double().sqrt()
    inverse = torch.linalg.pinv(distinct * root.unsqueeze(1), rtol=1e-10)
    return SelfEnergyFit(inverse @ (means * root), int(torch.linalg.matrix_rank(distinct)))


def subtract_self_energies(self_energies: Tensor, counts: Tensor, energies: Tensor) -> Tensor:
    """Energies less their atoms' SAEs, in float64. self_energies: (S,); counts: (M,S); energies: (M,) eV. Returns
    (M,).
    """
    return energies.double() - counts.double() @ self_energies


def add_self_energies(self_energies: Tensor, counts: Tensor, energies: Tensor) -> Tensor:
    """The inverse of `subtract_self_energies`."""
    return energies.double() + counts.double() @ self_energies
