"""The calibration of an ensemble whose members were trained apart, from structures that none of them was trained on.

# E members, M structures, L fidelity levels, A atoms in all of them, k labels of a level
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pykinml_func.inference.evaluation import predictions_of
from pykinml_func.inference.predictor import Predictor
from pykinml_func.training.calibration import calibration_of, squared_ratios
from pykinml_func.types import Calibration, Ensemble, Structures


def fit_calibration(ensemble: Ensemble, labels: Structures) -> Calibration:
    """What `training.calibration.calibrate` finds, of members whose self energies may differ too.

    labels: of `evaluation.read_labels`. NaN for a level without labels. Raises ModelError for elements that the model
    does not know.
    """
    found = predictions_of(Predictor(ensemble), labels)
    energies = torch.from_numpy(np.stack([each.member_energies for each in found], axis=1))
    energy = _ratios(energies, labels.energies)
    force = [energy[0].new_empty(0)] * len(energy)
    if found[0].member_forces is not None:
        of_atoms = [np.asarray(each.member_forces).transpose(0, 2, 3, 1) for each in found]
        force = _ratios(torch.from_numpy(np.concatenate(of_atoms, axis=1)), labels.forces.swapaxes(1, 2))
    spreads = energies[:, :, -1].std(dim=0) / torch.from_numpy(np.sqrt(labels.sizes))
    return calibration_of(energy, force, float(spreads.max()), ensemble.n_members)


def _ratios(members: Tensor, labels: np.ndarray) -> list[Tensor]:
    """`squared_ratios` of labels that are NaN where there is none. members: (E,k,...,L); labels: (k,...,L)."""
    known = torch.from_numpy(np.ascontiguousarray(labels))
    return squared_ratios(members, known, known.isfinite())
