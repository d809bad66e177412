from __future__ import annotations

import math

import numpy as np

from pykinml_func.config.aev import AEVConfig


def test_grids_follow_aevmods_rule() -> None:
    aev = AEVConfig(radial_cutoff=4.0, n_radial=4, angular_cutoff=3.0, n_angular_radial=3, n_angular=5)
    np.testing.assert_allclose(aev.radial_shifts, [0.5, 1.5, 2.5, 3.5])
    np.testing.assert_allclose(aev.angular_shifts, [0.5, 1.5, 2.5])
    np.testing.assert_allclose(aev.angular_sections, np.linspace(0, math.pi, 5))
    assert math.isclose(aev.radial_eta, 1 / (2 / 3) ** 2)
    assert math.isclose(aev.angular_eta, 1 / (2 / 3) ** 2)
    assert aev == aev.by_rule()


def test_given_grids_set_their_counts() -> None:
    aev = AEVConfig(radial_shifts=(0.9, 1.7, 2.2), angular_sections=(0.1, 3.0))
    assert (aev.n_radial, aev.n_angular, aev.n_angular_radial) == (3, 2, 8)
    assert aev.by_rule().radial_shifts != aev.radial_shifts


def test_the_length_is_that_of_pykinmls_networks() -> None:
    assert AEVConfig().length == 0
    assert AEVConfig(elements=("C", "H")).length == 2 * 16 + 3 * 8 * 8 == 224
