"""Learning-rate schedules as pure functions of a state and a validation error."""

from __future__ import annotations

from typing import NamedTuple

_LEAST_DROP = 1e-8
"""A drop of the rate smaller than this is not made, as in torch."""


class PlateauState(NamedTuple):
    """What ReduceLROnPlateau remembers."""

    learning_rate: float
    best: float = float("inf")
    """kcal/mol"""
    epochs_without_improvement: int = 0


def reduce_on_plateau(
    state: PlateauState, valid_rmse: float, patience: int, threshold: float, decay: float
) -> PlateauState:
    """Multiply the rate by `decay` after more than `patience` epochs without a fall by `threshold` kcal/mol.

    torch's ReduceLROnPlateau with an absolute threshold: PyKinML documents kcal/mol, yet leaves torch's default, a
    relative one.
    """
    if valid_rmse < state.best - threshold:
        return PlateauState(state.learning_rate, valid_rmse, 0)
    waited = state.epochs_without_improvement + 1
    if waited > patience:
        lower = state.learning_rate * decay
        return PlateauState(lower if state.learning_rate - lower > _LEAST_DROP else state.learning_rate, state.best, 0)
    return PlateauState(state.learning_rate, state.best, waited)
