"""Whole runs whose split keeps groups of structures together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Listener, Settings, assert_same_run, heard, run

from pykinml_func.config.build import build_config
from pykinml_func.config.toml import read_toml
from pykinml_func.data.formats.database import read_databases, write_database
from pykinml_func.data.formats.sources import find_inputs
from pykinml_func.data.splits import read_split_files
from pykinml_func.errors import ConfigError, DataError
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import Setup


@pytest.fixture
def named(databases: Path, settings: Settings, tmp_path: Path) -> Settings:
    """C2H2 and CH4 as numbered frames of six trajectories, four structures of each."""
    structures = read_databases(find_inputs([str(databases / "*.db")]))
    names = np.array([f"irc_{m // 4}_{m % 4:03}" for m in range(structures.n_structures)])
    for formula in ("C2H2", "CH4"):
        members = [m for m, name in enumerate(structures.ids) if str(name).startswith(f"{formula}/")]
        write_database(tmp_path / f"{formula}.db", structures._replace(names=names).take(members), {1: "Morse pairs"})
    return {**settings, "input": (str(tmp_path / "*.db"),), "split_by": "name:^(irc_[0-9]+)"}


def trajectories(setup: Setup) -> list[set[str]]:
    """Of each part of the split."""
    names = setup.data.labels.names
    return [{name.rpartition("_")[0] for name in names[part].tolist()} for part in setup.data.split]


def test_a_trajectory_is_in_one_part(named: Settings) -> None:
    result, setup = heard(named)
    train, valid, test = trajectories(setup)
    assert (len(train), len(valid), len(test)) == (4, 1, 1) and len(train | valid | test) == 6
    assert [len(part) for part in setup.data.split] == [16, 4, 4]
    assert set(trajectories(heard(named, split_by=None, output=result.directory / "other")[1])[2]) & train
    other = heard(named, seeds=(1, 1), output=result.directory / "seed")[1]
    assert trajectories(other) != [train, valid, test]


def test_its_files_bring_the_same_split_back(named: Settings, tmp_path: Path) -> None:
    result, setup = heard(named)
    listener = Listener()
    again = {**read_toml(result.directory / "config.toml"), "output": tmp_path / "again"}
    assert again["split_by"] == named["split_by"]
    fit(build_config(again), listener)
    for one, other in zip(setup.data.split, listener.setup.data.split, strict=True):
        np.testing.assert_array_equal(one, other)
    assert_same_run(result.directory, tmp_path / "again")
    files = {"split_files": (str(result.directory / "split.txt"),), "split": (16, 4, 0), "output": tmp_path / "files"}
    _, from_files = heard(named, **files)
    assert trajectories(from_files)[2] == trajectories(setup)[2]
    assert [len(found) for found in trajectories(from_files)] == [4, 1, 1]


def test_a_run_of_groups_is_resumed(named: Settings, tmp_path: Path) -> None:
    whole = run(named)
    cut = fit(build_config({**named, "output": tmp_path / "cut"}), Listener(interrupt_after=2))
    assert len(cut.history) == 2
    fit(build_config(read_toml(cut.directory / "config.toml")), Listener(), resume=True)
    assert_same_run(whole.directory, cut.directory)
    assert read_split_files([cut.directory / "split.txt"]) == read_split_files([whole.directory / "split.txt"])


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        (
            {"split_by": "name"},
            ConfigError,
            r"groups of several structures, got one for each of 24 \(irc_0_000 first\)",
        ),
        ({"split_by": "name:^ts"}, ConfigError, "finds nothing in 'irc_0_000'"),
        ({"split_by": "name:^irc"}, ConfigError, r"got 1 of 24 structures \(irc\)"),
        ({"split_by": "formula"}, ConfigError, r"3 in all, got 2 of 24 structures \(C2H2, CH4\)"),
    ],
)
def test_groups_that_cannot_be_kept_apart(named: Settings, more: Settings, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        run(named, **more)
    assert not named["output"].exists() and not named["prepared"].exists(), "named before any work"


def test_structures_without_names_are_not_grouped_by_them(settings: Settings) -> None:
    with pytest.raises(DataError, match="24 of 24 have none, C2H2/1 first"):
        run(settings, split_by="name")


def test_an_element_of_one_group_alone_needs_another_draw(settings: Settings, tmp_path: Path) -> None:
    lone = read_databases(find_inputs([*settings["input"]])).take(range(4))  # C2H2
    oxygen = lone._replace(numbers=np.tile([8, 8, 1, 1], 4), ids=np.array([f"H2O2/{m + 1}" for m in range(4)]))
    write_database(tmp_path / "O2H2.db", oxygen, {1: "Morse pairs"})
    inputs = (*settings["input"], str(tmp_path / "O2H2.db"))
    with pytest.raises(ConfigError, match="O occurs in none; draw other groups with another seed, or leave it out"):
        run(settings, input=inputs, split_by="formula", split=(0.6, 0.2))
