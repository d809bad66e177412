"""Runs that start from the networks of a model or a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import Listener, Settings, assert_same, differ, heard, run, timeless
from safetensors.torch import load_file

from pykinml_func.config.build import build_config
from pykinml_func.config.toml import read_toml
from pykinml_func.errors import ConfigError, ModelError
from pykinml_func.potential.energy import init_params
from pykinml_func.training.fit import fit
from pykinml_func.training.model_file import load_model, save_model
from pykinml_func.types import Params

FORCES = {"forces": True, "force_path": "jacobian"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """In one batch an epoch, so that training's errors are those of the model before its epoch."""
    return {**settings, "order": "fixed", "batch_size": 16}


@pytest.fixture
def again(settings: Settings, tmp_path: Path) -> Settings:
    """Settings of the run that goes on."""
    return {**settings, "output": tmp_path / "again"}


def without_rate(settings: Settings) -> Settings:
    """With keep_optimizer, the rate is the checkpoint's."""
    return {name: value for name, value in settings.items() if name != "learning_rate"}


def checkpoint(directory: Path, epoch: int) -> Path:
    return directory / "checkpoints" / f"epoch_{epoch:05d}.safetensors"


@pytest.mark.parametrize(("first", "second"), [({}, {}), ({}, FORCES), (FORCES, {}), (FORCES, FORCES)])
@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_a_run_starts_where_the_other_ended(
    settings: Settings, again: Settings, first: Settings, second: Settings, kind: str
) -> None:
    """The errors that training meets in the first epoch are those that the first run ended with. After one epoch the
    best model is the last.
    """
    ended = run(settings, epochs=1, **first)
    path = ended.directory / "model.safetensors" if kind == "model" else checkpoint(ended.directory, 1)
    result = run(again, start_from=path, **second)
    found = result.history[0]
    for name, value in ended.errors["train"].items():
        if f"train_{name}" in found:
            assert found[f"train_{name}"] == pytest.approx(value, rel=1e-9)
            assert found[f"train_{name}"] != pytest.approx(ended.history[0].get(f"train_{name}"), rel=1e-3)
    assert torch.equal(result.params.self_energies, ended.params.self_energies)
    assert differ(result.params.networks, ended.params.networks)


def test_the_networks_of_several_levels_are_gone_on_with(level_settings: Settings, tmp_path: Path) -> None:
    level_settings |= {"order": "fixed", "batch_size": 16}
    ended = run(level_settings, epochs=1)
    result = run(level_settings, start_from=checkpoint(ended.directory, 1), output=tmp_path / "again")
    assert torch.equal(result.params.self_energies, ended.params.self_energies)
    assert "level_1_energy_rmse" in ended.errors["train"]
    for name, value in ended.errors["train"].items():
        assert result.history[0][f"train_{name}"] == pytest.approx(value, rel=1e-9)


def test_self_energies_are_kept_with_other_data(settings: Settings, again: Settings, databases: Path) -> None:
    ended = run(settings)
    less = {"input": (str(databases / "C2H2.db"),), "split": (10, 2, 2)}
    result, setup = heard(again, start_from=ended.directory / "model.safetensors", **less)
    assert not setup.data.refitted
    assert torch.equal(result.params.self_energies, ended.params.self_energies)
    assert result.history[0]["train_energy_rmse"] < 0.5 * ended.history[0]["train_energy_rmse"]


def test_self_energies_are_fitted_anew_to_another_level(
    settings: Settings, again: Settings, level_databases: Path
) -> None:
    inputs = {"input": (str(level_databases / "*.db"),)}
    ended = run(settings, **inputs)
    model = ended.directory / "model.safetensors"
    result, setup = heard(again, **inputs, start_from=model, fidelity=0, split=(16, 3, 3))
    assert setup.data.refitted
    np.testing.assert_allclose(result.params.self_energies, 0.7 * ended.params.self_energies, rtol=1e-2)
    assert load_model(result.directory / "model.safetensors")[0].fidelities == (0,)
    assert_same(setup.params.networks, ended.params.networks)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"optimizer": "sgd", "learning_rate": 1e-3, "schedule": "exponential", "decay": 0.8},
        {**FORCES, "learn_loss_weights": True, "optimizer": "adamw", "weight_decay": 0.01},
        {"schedule": "step", "step_size": 2, "decay": 0.5},
    ],
)
def test_a_kept_optimizer_goes_on_as_if_it_had_not_stopped(
    settings: Settings, again: Settings, tmp_path: Path, training: Settings
) -> None:
    """Bit for bit: parameters, moments, loss weights, and every record. The model it starts from does not compete for
    the best one.
    """
    settings |= training
    again |= training
    whole = run(settings, epochs=7, output=tmp_path / "whole")
    first = run(settings, epochs=3)
    rest = run(without_rate(again), epochs=4, start_from=checkpoint(first.directory, 3), keep_optimizer=True)
    continued = [record | {"epoch": record["epoch"] + 3} for record in timeless(rest.history)]
    assert continued == timeless(whole.history)[3:]
    found, expected = load_file(checkpoint(rest.directory, 4)), load_file(checkpoint(whole.directory, 7))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected if not name.startswith("best."))


def test_a_kept_schedule_forgets_the_best_error_of_the_other_validation_set(
    settings: Settings, again: Settings
) -> None:
    """Nothing counts as improvement but the first epoch of each run, after which the rate waits for two epochs."""
    stalled = {"patience": 1, "threshold": 1e6}
    first = run(settings, epochs=3, **stalled)
    path = checkpoint(first.directory, 3)
    rest = run(without_rate(again), epochs=4, start_from=path, keep_optimizer=True, **stalled)
    rates = [record["learning_rate"] for record in rest.history]
    assert rates == [5e-3, 5e-3, 5e-3, 2.5e-3]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("old", "new"), [("float64", "float32"), ("float32", "float64")])
def test_a_start_takes_the_precision_of_the_run(
    settings: Settings, again: Settings, old: str, new: str, kept: bool
) -> None:
    ended = run(settings, precision=old, **FORCES, learn_loss_weights=True)
    path, training = checkpoint(ended.directory, 4), {**FORCES, "learn_loss_weights": True, "precision": new}
    result = run(without_rate(again) if kept else again, start_from=path, keep_optimizer=kept, **training)
    assert {weight.dtype for weight in result.params.networks[0].weights} == {getattr(torch, new)}
    found = load_file(checkpoint(result.directory, 4))
    assert found["optimizer.moments.0.log_variances"].dtype == getattr(torch, new)


def test_a_start_takes_the_precision_of_a_pre_saved_set(settings: Settings, again: Settings) -> None:
    run(settings, precision="float32")
    model = run(again).directory / "model.safetensors"
    single = next(p for p in settings["prepared"].iterdir() if np.load(p / "aevs.npy").dtype == np.float32)
    again |= {"input": (), "pre_saved": True, "prepared": single, "output": again["output"].parent / "third"}
    result = run(again, start_from=model)
    assert result.params.networks[0].weights[0].dtype == torch.float32


def test_what_is_read_must_not_lie_in_the_output(settings: Settings) -> None:
    """Or the run would replace it, and its config.toml would start from the result."""
    ended = run(settings)
    for change in (
        {"start_from": ended.directory / "model.safetensors"},
        {"split_files": (str(ended.directory / "split.txt"),), "split": (16, 4, 0)},
    ):
        with pytest.raises(ConfigError, match=r"output must not hold what the run reads.*choose another"):
            fit(build_config({**settings, **change}), Listener(), overwrite=True)
    assert (ended.directory / "model.safetensors").exists()


def test_self_energies_that_the_start_has_cannot_be_left_out(settings: Settings, again: Settings) -> None:
    model = run(settings).directory / "model.safetensors"
    with pytest.raises(ConfigError, match=r"fit_self_energies is off, and .* has self energies"):
        run(again, start_from=model, fit_self_energies=False)


def test_an_element_without_a_new_self_energy_is_named(
    settings: Settings, again: Settings, level_databases: Path, tmp_path: Path
) -> None:
    """Fitted anew for another level, it would be 0 eV."""
    model_config, _ = load_model(run(settings).directory / "model.safetensors")
    more = model_config.model_copy(update={"aev": model_config.aev.model_copy(update={"elements": ("C", "H", "O")})})
    drawn = init_params(more, torch.Generator().manual_seed(0))
    save_model(tmp_path / "more.safetensors", more, drawn)
    inputs = {"input": (str(level_databases / "*.db"),)}
    with pytest.raises(ConfigError, match=r"O occurs in none; .* start from a model without it"):
        run(again, **inputs, start_from=tmp_path / "more.safetensors", fidelity=0, split=(16, 3, 3))


def test_without_keep_optimizer_rate_and_moments_start_anew(settings: Settings, again: Settings) -> None:
    ended = run(settings, schedule="exponential", decay=0.5)
    path = checkpoint(ended.directory, 4)
    fresh = run(again, start_from=path, epochs=2, learning_rate=3e-3)
    assert [record["learning_rate"] for record in fresh.history] == [3e-3, 3e-3]
    assert load_file(checkpoint(fresh.directory, 2))["optimizer.step"].item() == 2


def test_keep_optimizer_is_refused_where_there_is_none_that_fits(settings: Settings, again: Settings) -> None:
    directory = run(settings).directory
    path = checkpoint(directory, 4)
    refused: list[tuple[Settings, str]] = [
        ({"start_from": directory / "model.safetensors"}, "must be a checkpoint to keep its optimizer, got a model"),
        ({"start_from": path, "optimizer": "sgd"}, "holds the state of adam, and this run's optimizer is sgd"),
        ({"start_from": path, **FORCES, "learn_loss_weights": True}, "holds 0 learned loss weights, .* has 2"),
    ]
    for change, told in refused:
        with pytest.raises(ModelError, match=told):
            run(without_rate(again), keep_optimizer=True, **change)
        assert not again["output"].exists()
        assert not list(settings["prepared"].glob("*/jacobians.npy"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"neurons": (8, 5, 1)}, r"neurons must be that of the model .* got \(8, 5, 1\), and .* has \(8, 4, 1\)"),
        ({"activations": ("tanh", "tanh", "identity")}, r"activations must be .* 'tanh', .* has \('gaussian',"),
        ({"biases": False}, r"biases must be .* got False, and .* has True; leave biases out, or train a new model"),
        ({"radial_cutoff": 4.7}, r"radial_cutoff must be .* got 4\.7, and .* has 5\.2"),
        ({"n_angular": 4}, r"n_angular must be .* got 4, and .* has 3"),
        ({"elements": ("C", "H", "O")}, r"elements must be .*'O'.* has \('C', 'H'\)"),
    ],
)
def test_settings_that_contradict_the_model_are_named_with_both_values(
    settings: Settings, again: Settings, change: Settings, told: str
) -> None:
    model = run(settings, epochs=1).directory / "model.safetensors"
    with pytest.raises(ConfigError, match=told):
        run(again, start_from=model, **change)
    assert not again["output"].exists()


def test_settings_that_are_left_out_are_the_models(settings: Settings, again: Settings) -> None:
    ended = run(settings)
    for name in ("n_radial", "n_angular_radial", "n_angular", "neurons", "activations"):
        del again[name]
    result = run(again, start_from=ended.directory / "model.safetensors")
    assert result.history[0]["train_energy_rmse"] == pytest.approx(ended.errors["train"]["energy_rmse"], rel=1e-9)
    assert load_model(result.directory / "model.safetensors")[0] == load_model(ended.directory / "model.safetensors")[0]


def test_a_continued_run_can_be_rerun_from_its_config(settings: Settings, again: Settings, tmp_path: Path) -> None:
    ended = run(settings)
    first = run(again, start_from=ended.directory / "model.safetensors")
    config = build_config({**read_toml(first.directory / "config.toml"), "output": tmp_path / "third"})
    assert_same(fit(config, Listener()).params, first.params)


def test_elements_that_the_model_does_not_know_are_named(settings: Settings, again: Settings, databases: Path) -> None:
    """A model of carbon alone does not learn hydrogen."""
    config, params = load_model(run(settings, epochs=1).directory / "model.safetensors")
    lone = config.model_copy(update={"aev": config.aev.model_copy(update={"elements": ("C", "N")})})
    path = again["output"].with_name("nitrogen.safetensors")
    save_model(path, lone, params)
    with pytest.raises(ConfigError, match=r"cannot learn new elements: .* of the elements C, N, got H .*; leave these"):
        run(again, start_from=path, input=(str(databases / "CH4.db"),), split=(6, 2, 2))
    assert not again["output"].exists()


def test_a_model_gains_and_loses_no_levels(settings: Settings, level_settings: Settings, again: Settings) -> None:
    one = run(settings, epochs=1).directory / "model.safetensors"
    with pytest.raises(ConfigError, match=r"predicts 1 fidelity levels, and this run asks for 2; .* ask for as many"):
        run(level_settings, start_from=one, output=again["output"])
    two = run(level_settings, epochs=1, overwrite=True).directory / "model.safetensors"
    with pytest.raises(ConfigError, match=r"predicts 2 fidelity levels, and this run asks for 1"):
        run(again, start_from=two)
    assert not again["output"].exists()


def test_a_missing_model_is_told_before_any_work(again: Settings, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model file"):
        run(again, start_from=tmp_path / "nothing.safetensors")
    assert not again["output"].exists() and not again["prepared"].exists()


def test_networks_are_taken_in_the_precision_of_the_run(settings: Settings, again: Settings) -> None:
    ended = run(settings)
    single = run(again, start_from=ended.directory / "model.safetensors", precision="float32")
    assert single.params.networks[0].weights[0].dtype == torch.float32
    assert isinstance(single.params, Params)
    assert single.history[0]["train_energy_rmse"] == pytest.approx(ended.errors["train"]["energy_rmse"], rel=1e-3)
