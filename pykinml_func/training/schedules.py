"""Learning-rate schedules as pure functions of a state and a validation error."""

from __future__ import annotations

import math
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
    height: float = 0.0
    """cosine: its highest rate"""
    begin: int = 0
    """epochs done before the first of this schedule"""
    end: int = 0
    """epochs done after its last"""


Schedule = Callable[[ScheduleState, float], ScheduleState]
"""The state before an epoch and the epoch's validation RMSE (kcal/mol) -> the state after it."""


def build_schedule(training: TrainConfig) -> Schedule:
    """The schedule that `training` names."""
    if training.schedule == "cosine":
        return cosine(training.warmup)
    if training.schedule == "exponential":
        return step_decay(1, training.decay)
    if training.schedule == "step":
        return step_decay(training.step_size, training.decay)
    return reduce_on_plateau(training.patience, training.threshold, training.decay)


def first_schedule(training: TrainConfig, kept: ScheduleState | None = None) -> ScheduleState:
    """The state before the first epoch. kept: that of a checkpoint whose optimizer is kept.

    Of `kept` the rate and the epochs done go on, and a cosine's height and beginning, so that a run that was cut short
    ends as it would have; its best error was that of another validation set.
    """
    if kept is None:
        kept = ScheduleState(training.learning_rate)
    rate, done = kept.learning_rate, kept.epochs
    if training.schedule != "cosine":
        return ScheduleState(rate, done, begin=done, end=done + training.epochs)
    height, begin = (kept.height, kept.begin) if kept.height else (rate, done)
    return _at_its_rate(
        ScheduleState(rate, done, height=height, begin=begin, end=done + training.epochs), training.warmup
    )


def force_weight_at(training: TrainConfig, state: ScheduleState) -> float:
    """The weight of the force loss in the next epoch: from `force_weight` to `force_weight_end` in equal steps."""
    if training.force_weight_end is None:
        return training.force_weight
    part = min(1.0, (state.epochs - state.begin) / max(1, state.end - state.begin - 1))
    return (1 - part) * training.force_weight + part * training.force_weight_end


def cosine(warmup: int) -> Schedule:
    """Rise in `warmup` equal steps to the state's height, then fall to 0 at its end along half a cosine.

    Loshchilov and Hutter, arXiv:1608.03983, eq. 5, without restarts.
    """

    def advance(state: ScheduleState, valid_rmse: float) -> ScheduleState:
        return _at_its_rate(state._replace(epochs=state.epochs + 1, best=min(state.best, valid_rmse)), warmup)

    return advance


def _at_its_rate(state: ScheduleState, warmup: int) -> ScheduleState:
    """With the rate of the next epoch of a cosine."""
    epoch = state.epochs - state.begin
    if epoch < warmup:
        return state._replace(learning_rate=state.height * (epoch + 1) / (warmup + 1))
    part = min(1.0, (epoch - warmup) / max(1, state.end - state.begin - warmup))
    return state._replace(learning_rate=state.height * (1 + math.cos(math.pi * part)) / 2)


def step_decay(step_size: int, decay: float) -> Schedule:
    """Multiply the rate by `decay` after every `step_size` epochs: torch's StepLR, and ExponentialLR where it is 1."""

    def advance(state: ScheduleState, valid_rmse: float) -> ScheduleState:
        epochs = state.epochs + 1
        rate = state.learning_rate * (decay if epochs % step_size == 0 else 1)
        return state._replace(learning_rate=rate, epochs=epochs, best=min(state.best, valid_rmse))

    return advance


def reduce_on_plateau(patience: int, threshold: float, decay: float) -> Schedule:
    """Multiply the rate by `decay` after more than `patience` epochs without a fall by `threshold` kcal/mol.

    torch's ReduceLROnPlateau with an absolute threshold: PyKinML documents kcal/mol, yet leaves torch's default, a
    relative one.
    """

    def advance(state: ScheduleState, valid_rmse: float) -> ScheduleState:
        epochs = state.epochs + 1
        if valid_rmse < state.best - threshold:
            return state._replace(epochs=epochs, best=valid_rmse, epochs_without_improvement=0)
        waited = state.epochs_without_improvement + 1
        if waited <= patience:
            return state._replace(epochs=epochs, epochs_without_improvement=waited)
        lower = state.learning_rate * decay
        rate = lower if state.learning_rate - lower > _LEAST_DROP else state.learning_rate
        return state._replace(learning_rate=rate, epochs=epochs, epochs_without_improvement=0)

    return advance
