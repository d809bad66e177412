"""Single-atom energies (SAEs): the part of an energy that its composition explains, by least squares.

As in PyKinML (doi 10.1021/acs.jpca.3c07872), but fitted to the training structures alone.
# M structures, L fidelity levels, S species
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear


class SelfEnergyFit(NamedTuple):
    """SAEs, and whether the compositions determined them."""

    self_energies: Tensor
    """(S,) eV, or (L,S)"""
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


def fit_level_self_energies(counts: Tensor, energies: Tensor) -> SelfEnergyFit:
    """SAEs of each level, each fitted to the structures that have its energy.

    A level is fitted to what the SAEs of the level below leave: the same where its compositions determine its SAEs,
    and close to those below, in place of close to zero, where they do not. counts: (M,S); energies: (M,L) eV, NaN where
    absent. Returns SAEs (L,S) and the least rank of a level.
    """
    below, fits = counts.new_zeros(counts.shape[1], dtype=torch.float64), []
    for column in energies.double().T:
        there = column.isfinite()
        left = subtract_self_energies(below, counts[there], column[there])
        fit = fit_self_energies(counts[there], left)
        below = below + fit.self_energies
        fits.append(SelfEnergyFit(below, fit.rank))
    return SelfEnergyFit(torch.stack([fit.self_energies for fit in fits]), min(fit.rank for fit in fits))


def subtract_self_energies(self_energies: Tensor, counts: Tensor, energies: Tensor) -> Tensor:
    """Energies less their atoms' SAEs, in float64. self_energies: (L,S), counts: (M,S), energies: (M,L) eV, returns
    (M,L); or without L in all of them.
    """
    return energies.double() - linear(counts.double(), self_energies)


def add_self_energies(self_energies: Tensor, counts: Tensor, energies: Tensor) -> Tensor:
    """The inverse of `subtract_self_energies`."""
    return energies.double() + linear(counts.double(), self_energies)
