"""Running means and annealed weights, in whole runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Listener, Settings, assert_same, differ, heard, lines_of, run, timeless
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig, TrainConfig
from pykinml_func.config.build import build_config
from pykinml_func.training.checkpoint import load_checkpoint
from pykinml_func.training.fit import fit
from pykinml_func.training.model_file import load_model
from pykinml_func.training.optimizers import adam, soap
from pykinml_func.training.schedules import ScheduleState, first_schedule, force_weight_at
from pykinml_func.training.step import Objective, build_train_step, init_state
from pykinml_func.types import Batch, Params

FAST: Settings = {"recipe": "fast", "save_every": 1, "order": "fixed", "epochs": 4, "learning_rate": 1e-2}


def test_a_running_mean_is_that_of_the_networks_after_each_step(
    model_config: ModelConfig, params: Params, make_batch: Any
) -> None:
    """Its decay rises with the steps k as k / (9 + k), to the one that was asked for."""
    batch: Batch = make_batch()
    plain, averaged = (init_state(params, adam(), Objective(), 1e-2, ema) for ema in (0.0, 0.3))
    steps = [build_train_step(model_config, adam(), Objective(), ema) for ema in (0.0, 0.3)]
    expected = params.networks
    for k in range(1, 8):
        plain, averaged = steps[0](plain, batch)[0], steps[1](averaged, batch)[0]
        decay = min(0.3, k / (9 + k))
        expected = tree_map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, plain.params.networks)
        assert_same(averaged.params, plain.params)
        for mine, theirs in zip(averaged.average[0].weights, expected[0].weights, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    assert plain.average == () and plain.evaluated is plain.params
    assert_same(averaged.evaluated, params._replace(networks=averaged.average))


def test_the_mean_is_what_is_validated_and_kept(settings: Settings) -> None:
    result = run(settings, **FAST)
    checkpoint = result.directory / "checkpoints" / "epoch_00004.safetensors"
    best = 1 + min(range(4), key=lambda k: result.history[k]["valid_energy_rmse"])
    kept = load_model(result.directory / "checkpoints" / f"epoch_{best:05d}.safetensors")[1]
    assert_same(load_model(result.directory / "model.safetensors")[1], kept)
    assert result.history[best - 1]["valid_energy_rmse"] == pytest.approx(result.errors["valid"]["energy_rmse"])
    assert differ(load_checkpoint(checkpoint, soap(), "soap", 0).last, load_model(checkpoint)[1].networks)


def test_the_force_weight_falls_in_equal_steps() -> None:
    training = TrainConfig(forces=True, force_weight=0.5, force_weight_end=0.1, epochs=5)
    state = first_schedule(training)
    weights = [force_weight_at(training, state._replace(epochs=epoch)) for epoch in range(7)]
    assert weights == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    assert force_weight_at(TrainConfig(forces=True, force_weight=0.5), ScheduleState(1.0, 3)) == 0.5


def test_an_epoch_is_trained_under_its_force_weight(settings: Settings) -> None:
    """Two epochs under weights of 0.8 and 0.2 are one under each, the second continued from the first."""
    given = {"forces": True, "order": "fixed", "save_every": 1}
    both = run(settings, **given, epochs=2, force_weight=0.8, force_weight_end=0.2)
    first = run(settings, **given, epochs=1, force_weight=0.8, output=settings["output"].with_name("first"))
    checkpoint = first.directory / "checkpoints" / "epoch_00001.safetensors"
    rest = {key: value for key, value in settings.items() if key != "learning_rate"} | {
        "output": settings["output"].with_name("rest")
    }
    second = run(rest, **given, epochs=1, force_weight=0.2, start_from=checkpoint, keep_optimizer=True)
    assert second.history[0]["valid_energy_rmse"] == both.history[1]["valid_energy_rmse"]


def test_a_fast_run_repeats_bit_for_bit(settings: Settings, tmp_path: Path) -> None:
    one, other = (run({**settings, "output": tmp_path / name}, **FAST) for name in ("one", "other"))
    assert timeless(lines_of(one.directory)) == timeless(lines_of(other.directory))
    assert_same(one.params, other.params)


def test_a_fast_run_that_was_cut_short_ends_as_it_would_have(settings: Settings, tmp_path: Path) -> None:
    whole = run(settings, **FAST)
    listener = Listener(interrupt_after=2)
    cut = fit(build_config({**settings, **FAST, "output": tmp_path / "cut"}), listener)
    assert cut.stopped_by == signal.SIGINT
    rest = {key: value for key, value in {**settings, **FAST}.items() if key != "learning_rate"} | {"epochs": 2}
    start = cut.directory / "checkpoints" / "epoch_00002.safetensors"
    resumed, setup = heard({**rest, "output": tmp_path / "rest"}, start_from=start, keep_optimizer=True)
    assert setup.config.training.recipe == "fast"
    for mine, theirs in zip(resumed.history, whole.history[2:], strict=True):
        for name in ("learning_rate", "train_energy_rmse", "valid_energy_rmse", "valid_force_rmse"):
            assert mine[name] == theirs[name]
