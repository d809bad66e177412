from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import assert_same

from pykinml_func.config import AEVConfig, ModelConfig, RunConfig, TrainConfig
from pykinml_func.training.checkpoint import Checkpoint
from pykinml_func.training.ranks import Ranks
from pykinml_func.training.schedules import ScheduleState
from pykinml_func.training.start import Start, first_state
from pykinml_func.types import Params, TrainState

SELF_ENERGIES = torch.tensor([[-1036.0, -13.5]], dtype=torch.float64)


def of_several(size: int) -> Ranks:
    """One rank, as if there were others."""
    ranks = Ranks(torch.device("cpu"))
    ranks.size = size
    return ranks


def first(size: int, start: Start | None = None, resumed: bool = False, **training: Any) -> tuple[TrainState, Any]:
    model = ModelConfig(aev=AEVConfig(elements=("C", "H"), n_radial=2, n_angular_radial=2, n_angular=2))
    config = RunConfig(model=model, training=TrainConfig(**training))
    state, (schedule,) = first_state(config, SELF_ENERGIES, start, of_several(size), resumed)
    return state, schedule


def checkpoint_of(state: TrainState, schedule: ScheduleState) -> Start:
    model = ModelConfig(aev=AEVConfig(elements=("C", "H"), n_radial=2, n_angular_radial=2, n_angular=2))
    return Start(model, state.params, Checkpoint((), state.log_variances, state.optimizer, (schedule,), None))


@pytest.mark.parametrize(("scale_lr", "size", "rate"), [(False, 4, 1e-3), (True, 1, 1e-3), (True, 4, 4e-3)])
@pytest.mark.parametrize("schedule", ["plateau", "exponential", "step"])
def test_the_learning_rate_may_grow_with_the_ranks(schedule: str, scale_lr: bool, size: int, rate: float) -> None:
    state, begun = first(size, schedule=schedule, scale_lr=scale_lr, learning_rate=1e-3)
    assert state.learning_rate.item() == begun.learning_rate == pytest.approx(rate, rel=1e-15)


def test_a_cosine_of_several_ranks_is_as_much_higher() -> None:
    one, four = (first(size, schedule="cosine", scale_lr=True, learning_rate=1e-3)[1] for size in (1, 4))
    assert four.height == pytest.approx(4 * one.height) == pytest.approx(4e-3)
    assert four.learning_rate == pytest.approx(4 * one.learning_rate)


def test_the_rate_of_a_checkpoint_is_not_scaled_again() -> None:
    """Neither where its run is resumed, whose schedule goes on as it was, nor where its optimizer is kept."""
    state, _ = first(2, scale_lr=True, learning_rate=1e-3)
    left = ScheduleState(2e-3, 7, 1.5, 3, begin=0, end=20)
    again, schedule = first(4, checkpoint_of(state, left), resumed=True, scale_lr=True, epochs=20, learning_rate=1e-3)
    assert schedule == left and again.learning_rate.item() == 2e-3
    kept = {"keep_optimizer": True, "start_from": "model.safetensors", "scale_lr": True}
    another, schedule = first(4, checkpoint_of(state, left), **kept)
    assert schedule.learning_rate == another.learning_rate.item() == 2e-3
    assert (schedule.epochs, schedule.best) == (7, float("inf"))


def test_all_ranks_begin_with_the_same_networks() -> None:
    """They are drawn from the seed, and nothing is sent."""
    one, other = (first(size, seeds=(0, 5))[0].params for size in (1, 3))
    assert_same(one, other)
    assert isinstance(one, Params) and torch.equal(one.self_energies, SELF_ENERGIES)
