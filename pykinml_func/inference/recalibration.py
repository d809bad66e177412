"""The calibration of an ensemble whose members were trained apart, from structures that none of them was trained on.

# E members, M structures, L fidelity levels, A atoms in all of them, k labels of a level
"""

from __future__ import annotations

import math

import numpy as np
import torch
from ase import Atoms

from pykinml_func.data.formats.ase_files import SOURCE
from pykinml_func.inference.predictor import Predictor
from pykinml_func.training.calibration import AGREED, student_scale
from pykinml_func.types import Calibration, Ensemble, Structures


def fit_calibration(ensemble: Ensemble, labels: Structures) -> Calibration:
    """What `training.calibration.calibrate` finds, of members whose self energies may differ too.

    labels: of `evaluation.read_labels`. NaN for a level without labels. Raises ModelError for elements that the model
    does not know.
    """
    bounds = zip(labels.ids.tolist(), labels.offsets[:-1], labels.offsets[1:], strict=True)
    images = [Atoms(labels.numbers[a:b], labels.positions[a:b], info={SOURCE: name}) for name, a, b in bounds]
    found = Predictor(ensemble).predict(images, forces=bool(np.isfinite(labels.forces).any()))
    energies = np.stack([each.member_energies for each in found], axis=1)
    energy = _scales(energies, labels.energies)
    force = [math.nan] * len(energy)
    if found[0].member_forces is not None:
        of_atoms = [np.asarray(each.member_forces).transpose(0, 2, 3, 1) for each in found]
        force = _scales(np.concatenate(of_atoms, axis=1), labels.forces.swapaxes(1, 2))
    spread = float((energies[:, :, -1].std(axis=0, ddof=1) / np.sqrt(labels.sizes)).max())
    limit = spread * (energy[-1] if math.isfinite(energy[-1]) else 1.0)
    numbers = energy, force, limit if limit > 0 else math.nan
    return Calibration(*(torch.tensor(each, dtype=torch.float64) for each in numbers))


def _scales(members: np.ndarray, labels: np.ndarray) -> list[float]:
    """Of each level. members: (E,k,...,L); labels: (k,...,L), NaN where there is none."""
    variance = members.var(axis=0, ddof=1)
    counted = np.isfinite(labels) & (variance > AGREED**2)
    squares = (members.mean(axis=0) - labels) ** 2 / np.where(counted, variance, 1.0)
    of_levels = [squares[..., level][counted[..., level]] for level in range(labels.shape[-1])]
    return [student_scale(torch.from_numpy(each), len(members) - 1) for each in of_levels]
