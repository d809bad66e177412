from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pykinml_func.config.aev import AEVConfig
from pykinml_func.config.build import build_config
from pykinml_func.config.names import SETTINGS
from pykinml_func.config.toml import read_toml, write_toml
from pykinml_func.data.formats.sources import find_inputs
from pykinml_func.errors import ConfigError


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"forces": True, "force_weight": 0.7, "epochs": 3, "names": "ts%,min%", "seeds": "3,4", "temp": 300},
        {"split_files": ["a.txt"], "split": "20,5,0", "sae_fit": False, "output": "runs/other", "biases": False},
        {"split_by": r"name:^(irc_\d+,\w)", "split": "0.5,0.25"},
        {"elements": "C,H,O", "beta": 0.8, "radial_cutoff": 6.1, "n_angular": 1},
        {"radial_shifts": [0.9, 1.7, 2.25], "radial_eta": 16.3, "angular_prefactor": 2.0, "zeta": 14.1},
        {"forces": True, "optimize_force_weight": True, "lrscheduler": "step", "optimizer": "SGD", "momentum": 0.25},
        {"multi_fid": True, "fidlevel_lf": [0, 3], "fidelity": 2, "pass_aev": False, "dscr": False, "num_cores": 2},
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
    write_toml(tmp_path / "config.toml", build_config({"forces": True, "temperature": 300.0, "split_by": "name"}))
    left_out = {"radial_eta", "angular_eta", "zeta", "radial_prefactor", "angular_prefactor"}
    left_out |= {"radial_shifts", "angular_shifts", "angular_sections"}
    left_out |= {"momentum", "step_size", "warmup", "force_weight_end", "start_from"}
    assert set(SETTINGS) - set(read_toml(tmp_path / "config.toml")) == left_out


def test_a_file_is_read_under_its_own_names(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[data]\ninput_data_fname = "*.db"\nmulti_fid = true\n[training]\nddp = false')
    found = read_toml(tmp_path / "run.toml")
    assert found == {"input_data_fname": [str(tmp_path / "*.db")], "multi_fid": True, "ddp": False}


def test_paths_in_toml_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "run.toml").write_text(
        'input = ["data/*.db", "/else/C2H2.db"]\nsplit_files = "a,b.txt"\noutput = "out"\n'
        'load_model_name = ["models/old.safetensors"]\n'
    )
    monkeypatch.chdir(tmp_path)
    found = read_toml(Path("project/run.toml"))
    assert found["input"] == ["project/data/*.db", "/else/C2H2.db"]
    assert found["split_files"] == ["project/a,b.txt"]  # a comma may be part of a path
    assert found["load_model_name"] == "project/models/old.safetensors"
    assert found["output"] == "out"  # where the command runs
    (folder / "run.toml").write_text('start_from = "/else/old.safetensors"')
    assert read_toml(Path("project/run.toml"))["start_from"] == "/else/old.safetensors"


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
    assert find_inputs(read_toml(folder / "run.toml")["input"]) == [expected]
    monkeypatch.chdir(folder)
    write_toml(tmp_path / "config.toml", build_config({"input": [pattern]}))
    assert find_inputs(read_toml(tmp_path / "config.toml")["input"]) == [expected]


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
    "given",
    [{}, {"epochs": 7, "force_weight": 0.5}, {"schedule": "step", "step_size": 3}, {"forces": False}],
    ids=["alone", "own values", "own schedule", "energies alone"],
)
def test_a_written_recipe_is_resolved_and_reads_back_the_same(tmp_path: Path, given: dict[str, object]) -> None:
    config = build_config({"recipe": "fast", "prepared": str(tmp_path / "prepared"), **given})
    write_toml(tmp_path / "config.toml", config)
    written = read_toml(tmp_path / "config.toml")
    assert written["recipe"] == "fast" and written["optimizer"] == config.training.optimizer
    assert build_config(written) == config
    standard = build_config({**written, "recipe": "standard"})
    assert standard.training == config.training.model_copy(update={"recipe": "standard"})
