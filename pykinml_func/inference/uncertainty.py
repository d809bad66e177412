"""What the spread of an ensemble's members says, on the scale that its calibration gives it.

# E members, M structures, L fidelity levels
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pykinml_func.types import Calibration


class Scales(NamedTuple):
    """A calibration of the highest level, as numbers."""

    energy: float = 1.0
    """calibrated over plain standard deviation; 1 where that is not known"""
    force: float = 1.0
    spread_limit: float = math.nan
    """eV; see `Calibration`"""


def scales_of(calibration: Calibration | None) -> Scales:
    """Those of a calibration, or of none."""
    if calibration is None:
        return Scales()
    energy, force = (float(scale[-1]) for scale in calibration[:2])
    return Scales(
        energy if math.isfinite(energy) else 1.0,
        force if math.isfinite(force) else 1.0,
        float(calibration.spread_limit),
    )


def spread_numbers(scales: Scales, energy_std: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Calibrated standard deviation of the energy over the root of the number of atoms, over the largest of the
    validation structures: Smith et al., J. Chem. Phys. 148, 241733 (2018).

    energy_std: (M,) eV; sizes: (M,) atoms. Returns (M,), NaN without a calibration.
    """
    found: np.ndarray = energy_std / np.sqrt(sizes) / scales.spread_limit
    return found
