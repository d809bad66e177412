"""What the spread of an ensemble's members means, from labels that none of them was trained to.

Where errors and members are Gaussian, of one unknown variance a structure, the error of the mean over the members'
sample standard deviation is `scale` times a number of Student's t distribution with E - 1 degrees of freedom: the scale
is that of largest likelihood. For many members that is the root of the mean square of those ratios; for few, the plain
mean is too large (by 18% for eight members), since variances come out small by chance, and none at all for two.

# E members, M structures, L fidelity levels, S species, N atoms a species (padded), k labels
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer
from pykinml_func.training.step import build_predict_step
from pykinml_func.types import Batch, Calibration, Params

AGREED = 1e-5
"""eV and eV/Å: members closer than this differ by rounding, as where symmetry forbids a force, and say nothing."""

_TOLERANCE = 1e-9
_MOST_ITERATIONS = 1000


class _Squares(NamedTuple):
    """What a batch gives, of each level."""

    energies: list[Tensor]
    """(k,) squares of error over standard deviation"""
    forces: list[Tensor]
    """(k,) the same of force components; empty where they are not looked at"""
    spread: float
    """eV, largest standard deviation of the highest level's energy over the root of the number of atoms"""


def calibrate(model_config: ModelConfig, members: Params, packer: Packer, forces: bool) -> Calibration:
    """The scales of energies and, where `forces` is set, of force components, and the largest spread.

    members: stacked; packer: of validation structures with their labels, all of them and not one rank's share. NaN for
    one member, and where nothing is labelled.
    """
    n_members, device = len(members.self_energies), members.self_energies.device
    unknown = torch.full((model_config.n_levels,), torch.nan, dtype=torch.float64, device=device)
    if n_members == 1:
        return Calibration(unknown, unknown.clone(), unknown[0].clone())
    found = list(_squares(model_config, members, packer, forces))
    by_level = ([each.energies for each in found], [each.forces for each in found])
    energy, force = ([torch.cat(parts) for parts in zip(*of_batches, strict=True)] for of_batches in by_level)
    spread = max((each.spread for each in found), default=0.0)
    return Calibration(*(each.to(device) for each in calibration_of(energy, force, spread, n_members)))


def calibration_of(energies: Sequence[Tensor], forces: Sequence[Tensor], spread: float, n_members: int) -> Calibration:
    """From the `squared_ratios` of every level, and the largest standard deviation of the energy over the root of the
    number of atoms (eV, not calibrated), NaN where there is no ratio.
    """
    energy, force = (
        torch.tensor([student_scale(each, n_members - 1) for each in kind], dtype=torch.float64)
        for kind in (energies, forces)
    )
    limit = energy[-1].nan_to_num(nan=1.0) * spread
    return Calibration(energy, force, torch.where(limit > 0, limit, torch.nan))


def student_scale(squares: Tensor, freedom: int) -> float:
    """The c of largest likelihood where numbers of these squares are c times ones of Student's t distribution.

    The solution of c² = mean of (f + 1) x² / (f + x² / c²), by repeated insertion. squares: (k,) x²; freedom: f.
    Returns NaN for no number above 0.
    """
    squares = squares[squares > 0].double()
    if len(squares) == 0:
        return math.nan
    square = squares.median()
    for _ in range(_MOST_ITERATIONS):
        before, square = square, ((freedom + 1) * squares / (freedom + squares / square)).mean()
        if abs(square - before) <= _TOLERANCE * square:
            break
    return float(square.sqrt())


def _squares(model_config: ModelConfig, members: Params, packer: Packer, forces: bool) -> Iterator[_Squares]:
    """Those of every batch."""
    predict = build_predict_step(model_config, forces, len(members.self_energies))
    for batch in packer.batches(packer.members):
        energies, *of_atoms = (each.double() for each in predict(members, batch))
        by_level = squared_ratios(energies, batch.energies, batch.energy_mask > 0)
        components = [energies.new_empty(0)] * model_config.n_levels
        if of_atoms and batch.forces is not None and batch.component_weights is not None:
            there = (batch.component_weights > 0).unsqueeze(-1).expand_as(batch.forces)
            components = squared_ratios(*(each.movedim(-2, -1) for each in (of_atoms[0], batch.forces, there)))
        yield _Squares(by_level, components, _spread(batch, energies[:, :, -1]))


def squared_ratios(members: Tensor, labels: Tensor, there: Tensor) -> list[Tensor]:
    """Squares of error over standard deviation, of each level. members: (E,...,L); labels, there: (...,L)."""
    variance = members.var(dim=0)
    squares = (members.mean(dim=0) - labels) ** 2 / variance
    counted = there & (variance > AGREED**2)
    return [squares[..., level][counted[..., level]] for level in range(labels.shape[-1])]


def _spread(batch: Batch, energies: Tensor) -> float:
    """Largest standard deviation over the root of the number of atoms. energies: (E,M) eV, of the highest level."""
    n_structures = energies.shape[1]
    sizes = torch.bincount(batch.structure_index.flatten(), minlength=n_structures + 1)[:n_structures]
    spreads = energies.std(dim=0) / sizes.clamp(min=1).double().sqrt()
    return float(torch.where(sizes > 0, spreads, 0).max())
