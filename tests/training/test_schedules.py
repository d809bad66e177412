from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from pykinml_func.config import TrainConfig
from pykinml_func.training.schedules import ScheduleState, build_schedule, first_schedule, reduce_on_plateau


def stochastic_descent() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)


@pytest.mark.parametrize(("patience", "threshold", "decay"), [(3, 0.05, 0.5), (0, 0.05, 0.9), (2, 0.0, 0.1)])
def test_plateau_is_torchs_with_an_absolute_threshold(patience: int, threshold: float, decay: float) -> None:
    steps = np.random.default_rng(2).normal(-0.03, 0.1, 120)
    errors = np.abs(5 + np.cumsum(steps)) + 0.1
    errors[20:25] = errors[19] - threshold  # falls by the threshold, to rounding: no improvement
    optimizer = stochastic_descent()
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=decay, patience=patience, threshold=threshold, threshold_mode="abs"
    )
    advance = build_schedule(TrainConfig(patience=patience, threshold=threshold, decay=decay))
    ours, rates = ScheduleState(1e-2), set()
    for epoch, error in enumerate(errors.tolist(), start=1):
        theirs.step(error)
        ours = advance(ours, error)
        assert ours.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert ours.epochs == epoch
        rates.add(ours.learning_rate)
    assert len(rates) > 3
    assert ours.best == theirs.best


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"schedule": "exponential", "decay": 0.93}, lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.93)),
        ({"schedule": "step", "step_size": 7, "decay": 0.3}, lambda optimizer: lr_scheduler.StepLR(optimizer, 7, 0.3)),
        ({"schedule": "step", "step_size": 1, "decay": 0.9}, lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.9)),
    ],
)
def test_step_and_exponential_are_torchs(settings: dict[str, Any], make: Any) -> None:
    optimizer = stochastic_descent()
    theirs, advance, ours = make(optimizer), build_schedule(TrainConfig(**settings)), ScheduleState(1e-2)
    errors = np.random.default_rng(0).uniform(1, 2, 40)
    for epoch, error in enumerate(errors.tolist(), start=1):
        optimizer.step()
        theirs.step()
        ours = advance(ours, error)
        assert ours.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert ours.epochs == epoch
    assert ours.learning_rate < 2e-3
    assert ours.best == errors.min()


@pytest.mark.parametrize("schedule", ["plateau", "exponential", "step", "cosine"])
def test_a_schedule_goes_on_from_its_state(schedule: str) -> None:
    """All that it remembers is in its state: what a checkpoint keeps."""
    given = {"step": {"step_size": 5}, "plateau": {"patience": 2}}.get(schedule, {})
    errors = np.random.default_rng(1).uniform(1, 2, 30).tolist()
    states = [first_schedule(TrainConfig(schedule=schedule, **given))]
    for error in errors:
        states.append(build_schedule(TrainConfig(schedule=schedule, **given))(states[-1], error))
    resumed = ScheduleState(**states[12]._asdict())
    for error in errors[12:]:
        resumed = build_schedule(TrainConfig(schedule=schedule, **given))(resumed, error)
    assert resumed == states[-1] and resumed.epochs == 30


def rates_of(training: TrainConfig, kept: ScheduleState | None = None, epochs: int | None = None) -> list[float]:
    """The rate of each epoch of a run, or of its first epochs, and the one after."""
    states = [first_schedule(training, kept)]
    for _ in range(epochs or training.epochs):
        states.append(build_schedule(training)(states[-1], 1.0))
    return [state.learning_rate for state in states]


def test_a_cosine_is_torchs() -> None:
    optimizer = stochastic_descent()
    theirs = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    expected = [optimizer.param_groups[0]["lr"]]
    for _ in range(20):
        optimizer.step()
        theirs.step()
        expected.append(optimizer.param_groups[0]["lr"])
    found = rates_of(TrainConfig(schedule="cosine", warmup=0, epochs=20, learning_rate=1e-2))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-17)


def test_a_warm_up_rises_in_equal_steps_to_the_height() -> None:
    rates = rates_of(TrainConfig(schedule="cosine", warmup=3, epochs=9, learning_rate=0.4))
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.2 * (1 + math.cos(math.pi / 6))])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[8] > 0 and rates[9] == pytest.approx(0, abs=1e-17)


def test_a_run_shorter_than_its_warm_up_rises_all_along() -> None:
    assert rates_of(TrainConfig(schedule="cosine", warmup=3, epochs=2, learning_rate=0.4))[:2] == [0.1, 0.2]


def test_a_cosine_that_was_cut_short_ends_as_it_would_have() -> None:
    whole = TrainConfig(schedule="cosine", warmup=2, epochs=12, learning_rate=1e-2)
    state = first_schedule(whole)
    for _ in range(5):
        state = build_schedule(whole)(state, 1.0)
    rest = TrainConfig(schedule="cosine", warmup=2, epochs=7, keep_optimizer=True, start_from="5")  # type: ignore[arg-type]
    assert rates_of(rest, state) == rates_of(whole)[5:]


def test_a_cosine_after_another_schedule_begins_at_its_rate() -> None:
    kept = ScheduleState(3e-4, 40, 0.7, 3)
    training = TrainConfig(schedule="cosine", warmup=0, epochs=10, keep_optimizer=True, start_from="5")  # type: ignore[arg-type]
    rates = rates_of(training, kept)
    assert rates[0] == 3e-4 and rates[5] == pytest.approx(1.5e-4) and rates[10] == pytest.approx(0, abs=1e-17)
    assert first_schedule(training, kept).epochs == 40


def test_a_fall_of_less_than_the_threshold_is_none() -> None:
    """With torch's default, relative threshold, 0.05 kcal/mol of 0.4 would count."""
    advance = reduce_on_plateau(patience=1, threshold=0.05, decay=0.5)
    state = advance(ScheduleState(1.0), 0.40)
    for error in (0.37, 0.36):
        state = advance(state, error)
    assert state == ScheduleState(0.5, 3, 0.40, 0)


def test_a_plateau_lowers_no_rate_by_next_to_nothing() -> None:
    advance = reduce_on_plateau(patience=0, threshold=0.0, decay=0.5)
    state = advance(ScheduleState(1.5e-8), 1.0)
    assert advance(state, 2.0).learning_rate == 1.5e-8
