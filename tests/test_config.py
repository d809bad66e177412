from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from pykinml_func.config import (
    ALIASES,
    NOT_YET,
    SETTINGS,
    AEVConfig,
    RunConfig,
    TrainConfig,
    build_config,
    canonical,
    check_split,
    read_toml,
    write_toml,
)
from pykinml_func.data.database import find_databases
from pykinml_func.errors import ConfigError

JARGON = re.compile(r"type=|https?://|pydantic|validation error|tuple|Input should|Field required|loc=", re.IGNORECASE)


def refusal(**given: Any) -> str:
    """The message that these settings are refused with."""
    with pytest.raises(ConfigError) as caught:
        build_config(given)
    assert not JARGON.search(str(caught.value)), caught.value
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
    assert config.model.aev.length == 0
    assert AEVConfig(elements=("C", "H")).length == 2 * 16 + 3 * 8 * 8  # the 224 of PyKinML's networks


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

    assert len(names(RunConfig)) == len(set(names(RunConfig))) == len(SETTINGS)
    assert not set(map(str.lower, ALIASES)) & set(SETTINGS)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().epochs = 3  # type: ignore[misc]


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


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"forces": True, "force_weight": 0.7, "epochs": 3, "names": "ts%,min%", "seeds": "3,4", "temp": 300},
        {"split_files": ["a.txt"], "split": "20,5,0", "sae_fit": False, "output": "runs/other", "biases": False},
        {"elements": "C,H,O", "beta": 0.8, "radial_cutoff": 6.1, "n_angular": 1},
        {"radial_shifts": [0.9, 1.7, 2.25], "radial_eta": 16.3, "angular_prefactor": 2.0, "zeta": 14.1},
        {"angular_sections": [0.1, 1.6, 3.0], "angular_shifts": [1.1], "radial_prefactor": 0.25},
    ],
)
def test_toml_round_trip(tmp_path: Path, given: dict[str, Any]) -> None:
    config = build_config({"input": (str(tmp_path / "*.db"),), "prepared": str(tmp_path / "prepared"), **given})
    config = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"split_files": tuple(str(tmp_path / name) for name in config.data.split_files)}
            )
        }
    )
    write_toml(tmp_path / "config.toml", config)
    assert build_config(read_toml(tmp_path / "config.toml")) == config


def test_a_written_config_names_every_setting_but_what_follows_from_others(tmp_path: Path) -> None:
    write_toml(tmp_path / "config.toml", build_config({"forces": True, "temperature": 300.0}))
    left_out = {"radial_eta", "angular_eta", "zeta", "radial_prefactor", "angular_prefactor"}
    left_out |= {"radial_shifts", "angular_shifts", "angular_sections"}
    assert set(SETTINGS) - set(read_toml(tmp_path / "config.toml")) == left_out


def test_paths_in_toml_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "run.toml").write_text(
        'input = ["data/*.db", "/else/C2H2.db"]\nsplit_files = "a,b.txt"\noutput = "out"\n'
    )
    monkeypatch.chdir(tmp_path)
    found = read_toml(Path("project/run.toml"))
    assert found["input"] == ["project/data/*.db", "/else/C2H2.db"]
    assert found["split_files"] == ["project/a,b.txt"]  # a comma may be part of a path
    assert found["output"] == "out"  # where the command runs


def test_written_paths_hold_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    write_toml(
        Path("runs/config.toml"), build_config({"input": ["data/*.db"], "split_files": ["tvt.txt"], "split": [9, 1]})
    )
    found = read_toml(Path("runs/config.toml"))
    assert found["input"] == [str(tmp_path / "data/*.db")]
    assert found["split_files"] == [str(tmp_path / "tvt.txt")]
    assert found["prepared"] == str(tmp_path / "prepared")


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "acetylene.db").touch()
    (tmp_path / "CHCH.db").symlink_to("acetylene.db")
    write_toml(tmp_path / "config.toml", build_config({"input": [str(tmp_path / "CHCH.db")]}))
    assert read_toml(tmp_path / "config.toml")["input"] == [str(tmp_path / "CHCH.db")]


@pytest.mark.parametrize("pattern", ["*.db", "CH4.db", "set[[]2]/CH4.db", "set[2]/CH4.db"])
def test_a_folder_with_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    folder = tmp_path / "run[1]"
    (folder / "set[2]").mkdir(parents=True)
    (folder / "CH4.db").touch()
    (folder / "set[2]/CH4.db").touch()
    expected = folder / ("set[2]/CH4.db" if "set" in pattern else "CH4.db")
    (folder / "run.toml").write_text(f'input = "{pattern}"')
    assert find_databases(read_toml(folder / "run.toml")["input"]) == [expected]
    monkeypatch.chdir(folder)
    write_toml(tmp_path / "config.toml", build_config({"input": [pattern]}))
    assert find_databases(read_toml(tmp_path / "config.toml")["input"]) == [expected]


def test_grids_of_the_rule_follow_what_changes_on_a_rerun(tmp_path: Path) -> None:
    write_toml(tmp_path / "config.toml", build_config({"zeta": 14.1, "radial_shifts": [1.0, 2.0]}))
    changed = {"radial_cutoff": 4.0, "angular_cutoff": 3.0, "n_angular": 3}
    found = build_config(read_toml(tmp_path / "config.toml") | changed).model.aev
    assert found == AEVConfig(zeta=14.1, radial_shifts=(1.0, 2.0), **changed)  # type: ignore[arg-type]


def test_a_database_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "CH4.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)))
    with pytest.raises(ConfigError, match=r"got .*CH4\.db, a database; quote globs .* or repeat --input"):
        read_toml(tmp_path / "CH4.db")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[data]\nepochs = 1\n[training]\nepochs = 2", r"sets epochs in \[data\] and in \[training\]; keep one"),
        ("epochs = 1\n[model.aev]\nepochs = 2", r"sets epochs at the top and in \[model.aev\]"),
        ("epochs = 1\n[training]\nEpochs = 2", "unknown setting 'Epochs'; did you mean epochs"),
        ("batch_size = 1\n[training]\nbatch-size = 2", "batch_size and batch-size set the same thing"),
        ("[trainig]\nepochs = 1", r"unknown section \[trainig\] in .*; did you mean \[training\]\?"),
        (
            "[aev]\nzeta = 1",
            r"unknown section \[aev\] .* sections are \[data\], \[model\], \[model.aev\], \[training\]",
        ),
    ],
)
def test_sections_are_ours_and_each_setting_stands_once(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "run.toml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_toml(tmp_path / "run.toml")


@pytest.mark.parametrize("name", NOT_YET)
def test_what_pykinml_has_and_we_have_not(name: str) -> None:
    assert (
        refusal(**{name.replace("_", "-"): 1})
        == f"{name.replace('_', '-')} is PyKinML's, and not there yet; leave it out"
    )
    assert name not in SETTINGS and name not in ALIASES


def test_a_setting_may_stand_in_any_section(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('fw = 0.2\n[data]\nepochs = 3\n[model.aev]\ninput = "C2H2.db"\nfloss = true\n')
    config = build_config(read_toml(tmp_path / "run.toml"))
    assert (config.training.force_weight, config.training.epochs, config.training.forces) == (0.2, 3, True)
    assert config.data.input == (str(tmp_path / "C2H2.db"),)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no configuration file"), (b"epochs = = 3", "must be TOML"), (b"\xff\xfe", "must be TOML")],
)
def test_a_file_that_is_no_toml_is_told(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_toml(path)
    assert str(path) in str(caught.value)


def test_a_directory_is_no_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)


@pytest.mark.parametrize(
    ("typed", "meant"), [("epoch", "epochs"), ("learning-rat", "learning_rate"), ("tr_batchsize", "tr_batch_size")]
)
def test_an_unknown_name_comes_with_the_close_match(typed: str, meant: str) -> None:
    assert refusal(**{typed: 1}) == f"unknown setting {typed!r}; did you mean {meant}?"


def test_an_unknown_name_far_from_all_points_to_the_help() -> None:
    assert "pykinml train --help" in refusal(zzzzzz=1)


@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        ("batch_size", "tr_batch_size", "batch_size"),
        ("aev_params", "n_radial", "n_radial"),
        ("biases", "no_biases", "biases"),
        ("fidlevel", "fidelity", "fidelity"),
    ],
)
def test_a_setting_under_two_names_is_refused(first: str, second: str, target: str) -> None:
    values = {"aev_params": [4, 2, 2], "biases": True, "no_biases": False}
    message = refusal(**{name: values.get(name, 4) for name in (first, second)})
    assert message.startswith(f"{first} and {second} set the same thing ({target})")


ALIAS_VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "input_data_fname": (["a.db"], {"input": ("a.db",)}),
    "fidlevel": (3, {"fidelity": 3}),
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
    "tr_batch_size": (7, {"batch_size": 7}),
    "vl_batch_size": (8, {"valid_batch_size": 8}),
    "ts_batch_size": (9, {"test_batch_size": 9}),
    "LR_patience": (11, {"patience": 11}),
    "LR_threshold": (0.125, {"threshold": 0.125}),
    "decayrate": (0.75, {"decay": 0.75}),
    "floss": (True, {"forces": True}),
    "fw": (0.25, {"force_weight": 0.25}),
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
}


def test_every_alias_is_tested() -> None:
    assert set(ALIAS_VALUES) == set(ALIASES)


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
    assert "true or false" in refusal(**{name: "false"})


def test_dashes_and_underscores_are_alike() -> None:
    assert canonical({"learning-rate": 1}) == canonical({"learning_rate": 1}) == {"learning_rate": 1}


def test_a_force_weight_needs_forces() -> None:
    message = refusal(force_weight=0.5)
    assert "force_weight needs forces" in message and "0.5" in message
    assert build_config({"force_weight": 0}).training.force_weight == 0
    assert build_config({"force_weight": 0.5, "forces": True}).training.force_weight == 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"neurons": [4, 2, 1]}, ["activations", "4 for 3 layers"]),
        ({"neurons": [4, 2], "activations": "tanh,identity"}, ["end with 1", "4, 2"]),
        ({"neurons": [], "activations": []}, ["end with 1"]),
        ({"activations": "gauss,tanh,tanh,identity"}, ["activations", "'gaussian'", "'gauss'"]),
        ({"n_radial": 3, "radial_shifts": [1.0, 2.0]}, ["n_radial", "radial_shifts", "3 and 2", "leave one"]),
        ({"n_angular": 4, "angular_sections": [1.0]}, ["n_angular", "angular_sections", "4 and 1"]),
        ({"n_angular_radial": 1, "angular_shifts": [1.0, 2.0]}, ["n_angular_radial", "1 and 2"]),
        ({"n_radial": 0}, ["n_radial", "greater than 0", "0"]),
        ({"n_radial": 2.5}, ["n_radial", "whole number", "2.5"]),
        ({"n_radial": "many"}, ["n_radial", "whole number", "'many'"]),
        ({"radial_shifts": 3}, ["radial_shifts", "list", "3"]),
        ({"radial_cutoff": math.inf}, ["radial_cutoff", "finite", "inf"]),
        ({"learning_rate": math.nan}, ["learning_rate", "nan"]),
        ({"elements": "C,H,C"}, ["elements", "C, H, C"]),
        ({"elements": "C,Xx"}, ["elements", "Xx"]),
        ({"elements": "C,h"}, ["elements", "got h"]),
        ({"beta": 0}, ["beta", "greater than 0"]),
        ({"beta": 1.1}, ["beta", "less than or equal to 1", "1.1"]),
        ({"decay": 1}, ["decay", "less than 1"]),
        ({"epochs": "ten"}, ["epochs", "whole number", "'ten'"]),
        ({"seeds": [1]}, ["seeds", "2 values", "[1]"]),
        ({"seeds": "1,2,3"}, ["seeds", "2 values", "'3'"]),
        ({"seeds": "-1,2"}, ["seeds must be from 0 to 2**63 - 1, got -1, 2"]),
        ({"seeds": [0, 2**63]}, ["seeds", f"got 0, {2**63}"]),
        ({"n_radial": "16.5"}, ["n_radial", "whole number", "'16.5'"]),
        ({"n_angular": "2.5"}, ["n_angular", "whole number", "'2.5'"]),
        ({"aev_params": "4,2"}, ["aev_params", "3 values", "n_angular_radial", "'4,2'"]),
        ({"cuttoff_radius": 4.6}, ["cuttoff_radius", "2 values", "4.6"]),
        ({"force_path": "autograd"}, ["force_path", "'positions'", "'autograd'"]),
        ({"forces": "maybe"}, ["forces", "true or false", "'maybe'"]),
        ({"prepared": 3}, ["prepared", "path", "3"]),
        ({"neurons": 5}, ["neurons", "list", "5"]),
        ({"temperature": "cold"}, ["temperature", "a number", "'cold'"]),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_came(given: dict[str, Any], said: list[str]) -> None:
    message = refusal(**given)
    for part in said:
        assert part in message


def test_every_fault_is_told_at_once() -> None:
    assert len(refusal(epochs=0, batch_size=-1, device=3).splitlines()) == 3


@pytest.mark.parametrize("split", [(36, 4), (36, 4, 0), (0.7, 0.2, 0.1), (0.8, 0.1), (0.5, 0.2, 0.1), (1, 0, 0)])
def test_splits_that_are_taken(split: tuple[float, ...]) -> None:
    check_split(split, from_files=False)


@pytest.mark.parametrize(
    ("split", "from_files", "said"),
    [
        ((0.7, 0.2, 0.2), False, "sum to at most 1, got 0.7, 0.2, 0.2"),
        ((0.5, 4, 0), False, "sum to at most 1"),
        ((10,), False, "two or three numbers"),
        ((1, 2, 3, 4), False, "two or three numbers"),
        ((10, -1), False, "0 or more"),
        ((0, 10, 10), False, "something to train on"),
        ((0.8, 0.1, 0.1), True, "counts when split_files is given"),
    ],
)
def test_splits_that_are_refused(split: tuple[float, ...], from_files: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_split(split, from_files)
    assert said in refusal(split=list(split), **({"split_files": ["tvt.txt"]} if from_files else {}))
