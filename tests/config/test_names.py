from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pykinml_func.config.build import build_config
from pykinml_func.config.names import ALIASES, SETTINGS, SWITCHES, Given, canonical
from pykinml_func.config.run import DERIVED, RunConfig
from pykinml_func.errors import ConfigError


def refusal(given: dict[str, Any]) -> str:
    """The message that these names are refused with."""
    with pytest.raises(ConfigError) as caught:
        canonical(given)
    return str(caught.value)


def setting(config: RunConfig, name: str) -> Any:
    found: Any = config
    for section in SETTINGS[name].section:
        found = getattr(found, section)
    return getattr(found, name)


def test_no_settings_give_the_defaults() -> None:
    config = build_config({})
    assert config == RunConfig()
    for name, known in SETTINGS.items():
        if known.default not in (None, ()) and name != "seeds":
            assert setting(config, name) == known.default or name.endswith(("_shifts", "_sections"))


def test_every_setting_tells_what_it_is() -> None:
    assert all(known.description for known in SETTINGS.values())
    for name in ("radial_cutoff", "temperature", "threshold", "radial_shifts", "angular_sections", "radial_eta"):
        assert re.search(r"\[(Å|K|kcal/mol|rad|1/Å²)\]", SETTINGS[name].description)


def test_a_name_belongs_to_one_section() -> None:
    def names(model: type[BaseModel]) -> list[str]:
        parts = [(name, field.annotation) for name, field in model.model_fields.items()]
        nested = [names(kind) for _, kind in parts if isinstance(kind, type) and issubclass(kind, BaseModel)]
        plain = [name for name, kind in parts if not (isinstance(kind, type) and issubclass(kind, BaseModel))]
        return plain + [name for inner in nested for name in inner]

    assert len(names(RunConfig)) == len(set(names(RunConfig)))
    assert set(names(RunConfig)) - set(SETTINGS) == set(DERIVED)
    assert not set(map(str.lower, ALIASES)) & set(SETTINGS)


@pytest.mark.parametrize(
    ("typed", "meant"), [("epoch", "epochs"), ("learning-rat", "learning_rate"), ("tr_batchsize", "tr_batch_size")]
)
def test_an_unknown_name_comes_with_the_close_match(typed: str, meant: str) -> None:
    assert refusal({typed: 1}) == f"unknown setting {typed!r}; did you mean {meant}?"


def test_an_unknown_name_far_from_all_points_to_the_help() -> None:
    assert "pykinml train --help" in refusal({"zzzzzz": 1})


@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        ("batch_size", "tr_batch_size", "batch_size"),
        ("aev_params", "n_radial", "n_radial"),
        ("biases", "no_biases", "biases"),
        ("fidlevel", "fidelity", "fidelity"),
        ("gpus", "GPUs", "gpus"),
    ],
)
def test_a_setting_under_two_names_is_refused(first: str, second: str, target: str) -> None:
    values = {"aev_params": [4, 2, 2], "biases": True, "no_biases": False}
    message = refusal({name: values.get(name, 4) for name in (first, second)})
    assert message.startswith(f"{first} and {second} set the same thing ({target})")


ALIAS_VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "input_data_fname": (["a.db"], {"input": ("a.db",)}),
    "input_data_type": ("pca", {"input_type": "pca"}),
    "fidlevel": (3, {"fidelity": 3}),
    "fidlevel_lf": ([0, 2], {"low_fidelity": (0, 2)}),
    "multi_fid": (True, {"multi_fidelity": True}),
    "nameset": (["ts%"], {"names": ("ts%",)}),
    "temp": (450.0, {"temperature": 450.0}),
    "trtsid_name": (["tvt.txt"], {"split_files": ("tvt.txt",)}),
    "tvt": ([36, 4, 0], {"split": (36, 4, 0)}),
    "sae_fit": (False, {"fit_self_energies": False}),
    "data_path": ("elsewhere", {"prepared": Path("elsewhere")}),
    "present_elements": (["C", "H"], {"elements": ("C", "H")}),
    "aev_params": ([5, 4, 3], {"n_radial": 5, "n_angular_radial": 4, "n_angular": 3}),
    "cuttoff_radius": ([4.5, 3.5], {"radial_cutoff": 4.5, "angular_cutoff": 3.5}),
    "my_neurons": ([7, 1], {"neurons": (7, 1)}),
    "my_actfn": (["tanh", "identity"], {"activations": ("tanh", "identity")}),
    "pass_eng": (False, {"pass_energy": False}),
    "dscr": (False, {"sum_levels": False}),
    "tr_batch_size": (7, {"batch_size": 7}),
    "vl_batch_size": (8, {"valid_batch_size": 8}),
    "ts_batch_size": (9, {"test_batch_size": 9}),
    "lrscheduler": (["exp"], {"schedule": "exponential"}),
    "stepsize": (30, {"step_size": 30}),
    "LR_patience": (11.0, {"patience": 11}),
    "LR_threshold": (0.125, {"threshold": 0.125}),
    "decayrate": (0.75, {"decay": 0.75}),
    "floss": (True, {"forces": True}),
    "fw": (0.25, {"force_weight": 0.25}),
    "optimize_force_weight": (True, {"learn_loss_weights": True}),
    "load_model_name": (["model.safetensors"], {"start_from": Path("model.safetensors")}),
    "randomseed": ([5, 6], {"seeds": (5, 6)}),
    "num_cores": (3, {"threads": 3}),
    "savenm": ("my_run", {"output": Path("my_run")}),
}
"""What PyKinML's names are given here, and the settings that must come of it."""

COMPANIONS: dict[str, dict[str, Any]] = {
    "trtsid_name": {"split": [20, 5, 0]},
    "my_neurons": {"activations": ["tanh", "identity"]},
    "my_actfn": {"neurons": [7, 1]},
    "fw": {"forces": True},
    "optimize_force_weight": {"floss": True},
    "fidlevel_lf": {"multi_fid": True},
    "multi_fid": {"fidlevel_lf": 0},
    "pass_eng": {"multi_fid": True, "fidlevel_lf": 0},
    "dscr": {"multi_fid": True, "fidlevel_lf": 0},
    "stepsize": {"lrscheduler": "step"},
}


def test_every_alias_is_tested() -> None:
    assert set(ALIAS_VALUES) == set(ALIASES)


def test_a_switch_is_about_a_setting() -> None:
    assert set(SWITCHES.values()) <= set(SETTINGS)
    assert not set(SWITCHES) & {*SETTINGS, *ALIASES}


@pytest.mark.parametrize("spelled", [str, str.upper, str.lower, lambda name: name.replace("_", "-")])
@pytest.mark.parametrize("alias", ALIAS_VALUES)
def test_an_alias_reaches_its_settings(alias: str, spelled: Any) -> None:
    value, ours = ALIAS_VALUES[alias]
    config = build_config({spelled(alias): value, **COMPANIONS.get(alias, {})})
    assert {name: setting(config, name) for name in ours} == ours
    assert all(setting(RunConfig(), name) != each for name, each in ours.items())


@pytest.mark.parametrize("alias", [name for name, (value, _) in ALIAS_VALUES.items() if isinstance(value, list)])
def test_a_list_may_be_text_with_commas(alias: str) -> None:
    (value, _), others = ALIAS_VALUES[alias], COMPANIONS.get(alias, {})
    text = ", ".join(map(str, value))
    assert build_config({alias: text, **others}) == build_config({alias: value, **others})


@pytest.mark.parametrize("name", ["no_biases", "no-biases", "No_Biases"])
def test_no_biases(name: str) -> None:
    assert build_config({name: True}).model.biases is False
    assert build_config({name: False}).model.biases is True
    assert "true or false" in refusal({name: "false"})


def test_dashes_and_underscores_are_alike() -> None:
    assert canonical({"learning-rate": 1}) == {"learning_rate": Given(1, "learning-rate")}
    assert canonical({"learning_rate": 1}) == {"learning_rate": Given(1, "learning_rate")}


@pytest.mark.parametrize("name", ["optimizer", "lrscheduler", "load_model_name", "savenm", "start_from"])
def test_pykinmls_lists_of_one_are_one(name: str) -> None:
    (only,) = canonical({name: ["x"]}).values()
    assert only.value == "x" and only.name == name


def test_empty_text_empties_what_may_be_nothing() -> None:
    for name, known in SETTINGS.items():
        if known.default in (None, ()):
            assert canonical({name: ""})[name].value == known.default
        else:
            assert refusal({name: ""}).startswith(f"{name} must not be empty; leave it out for the default, ")
    assert canonical({"input": [""]})["input"].value == ()
    assert refusal({"tvt": ""}) == "tvt must not be empty; leave it out for the default, 0.8,0.1,0.1"


@pytest.mark.parametrize("typed", [0, [0], "0", ["0"]])
def test_gpus_are_numbers(typed: Any) -> None:
    assert canonical({"gpus": typed})["gpus"].value == [0]


@pytest.mark.parametrize("typed", ["", "a", [], -1, True, [0.5], None])
def test_gpus_that_are_none_are_refused(typed: Any) -> None:
    assert refusal({"gpus": typed}).startswith("gpus must be the number of a GPU, such as 0, got ")


@pytest.mark.parametrize("name", [name for name in SWITCHES if name != "gpus"])
def test_switches_are_true_or_false(name: str) -> None:
    assert refusal({name: "yes"}) == f"{name} must be true or false, got 'yes'"
