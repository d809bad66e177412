"""Learning-rate schedules as pure functions of a state and a validation error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pykinml_func.config import TrainConfig

_LEAST_DROP = 1e-8
"""A drop of the rate smaller than this is not made on a plateau, as in torch."""


class ScheduleState(NamedTuple):
    """What a schedule remembers."""

    learning_rate: float
    epochs: int = 0
    """done"""
    best: float = float("inf")
    """least validation RMSE, kcal/mol"""
    epochs_without_improvement: int = 0


Schedule = Callable[[ScheduleState, float], ScheduleState]
"""The state before an epoch and the epoch's validation RMSE (kcal/mol) -> the state after it."""


def build_schedule(training: TrainConfig) -> Schedule:
    """The schedule that `training` names."""
    if training.schedule == "exponential":
        return step_decay(1, training.decay)
    if training.schedule == "step":
        return step_decay(training.step_size, training.decay)
    return reduce_on_plateau(training.patience, training.threshold, training.decay)


def step_decay(step_size: int, decay: float) -> Schedule:
    """Multiply the rate by `decay` after every `step_size` epochs: torch's StepLR, and ExponentialLR where it is 1."""

    def advance(state: ScheduleState, valid_rmse: float) -> ScheduleState:
        epochs = state.epochs + 1
        rate = state.learning_rate * (decay if epochs % step_size == 0 else 1)
        return ScheduleState(rate, epochs, min(state.best, valid_rmse))

    return advance


def reduce_on_plateau(patience: int, threshold: float, decay: float) -> Schedule:
    """Multiply the rate by `decay` after more than `patience` epochs without a fall by `threshold` kcal/mol.

    torch's ReduceLROnPlateau with an absolute threshold: PyKinML documents kcal/mol, yet leaves torch's default, a
    relative one.
    """

    def advance(state: ScheduleState, valid_rmse: float) -> ScheduleState:
        epochs = state.epochs + 1
        if valid_rmse < state.best - threshold:
            return ScheduleState(state.learning_rate, epochs, valid_rmse, 0)
        waited = state.epochs_without_improvement + 1
        if waited <= patience:
            return ScheduleState(state.learning_rate, epochs, state.best, waited)
        lower = state.learning_rate * decay
        rate = lower if state.learning_rate - lower > _LEAST_DROP else state.learning_rate
        return ScheduleState(rate, epochs, state.best, 0)

    return advance
