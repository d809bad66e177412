"""What a calibration says as numbers of the highest level, and what none says."""

from __future__ import annotations

import math

import numpy as np
import torch

from pykinml_func.inference.uncertainty import scales_of, spread_numbers
from pykinml_func.types import Calibration


def test_scales_are_those_of_the_highest_level() -> None:
    found = scales_of(Calibration(torch.tensor([3.0, 2.0]), torch.tensor([5.0, 4.0]), torch.tensor(0.25)))
    assert found == (2.0, 4.0, 0.25)
    np.testing.assert_allclose(spread_numbers(found, np.array([0.5, 1.0]), np.array([4, 16])), [1.0, 1.0])


def test_what_is_not_known_scales_nothing() -> None:
    unknown = torch.tensor([2.0, math.nan])
    found = scales_of(Calibration(unknown, unknown, torch.tensor(0.25)))
    assert found == (1.0, 1.0, 0.25)
    assert scales_of(None)[:2] == (1.0, 1.0)
    assert np.isnan(spread_numbers(scales_of(None), np.array([0.5]), np.array([4]))).all()
