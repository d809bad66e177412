from __future__ import annotations

import numpy as np
import pytest
import torch

from pykinml_func.training.schedules import PlateauState, reduce_on_plateau


@pytest.mark.parametrize(("patience", "threshold", "decay"), [(3, 0.05, 0.5), (0, 0.05, 0.9), (2, 0.0, 0.1)])
def test_the_schedule_is_torchs_with_an_absolute_threshold(patience: int, threshold: float, decay: float) -> None:
    steps = np.random.default_rng(2).normal(-0.03, 0.1, 120)
    errors = np.abs(5 + np.cumsum(steps)) + 0.1
    errors[20:25] = errors[19] - threshold  # falls by the threshold, to rounding: no improvement
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=decay, patience=patience, threshold=threshold, threshold_mode="abs"
    )
    ours, rates = PlateauState(1e-2), set()
    for error in errors.tolist():
        theirs.step(error)
        ours = reduce_on_plateau(ours, error, patience, threshold, decay)
        assert ours.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        rates.add(ours.learning_rate)
    assert len(rates) > 3
    assert ours.best == theirs.best


def test_a_fall_of_less_than_the_threshold_is_none() -> None:
    """With torch's default, relative threshold, 0.05 kcal/mol of 0.4 would count."""
    state = reduce_on_plateau(PlateauState(1.0), 0.40, 1, 0.05, 0.5)
    for error in (0.37, 0.36):
        state = reduce_on_plateau(state, error, 1, 0.05, 0.5)
    assert state == PlateauState(0.5, 0.40, 0)
