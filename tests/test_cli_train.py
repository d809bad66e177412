"""`pykinml train` end to end: from mixed sources, from a prepared set alone, from a model, and to a difference."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Hartree
from cli_calls import SMALL, Run, flat, run_command
from torch.utils._pytree import tree_leaves

from pykinml_func.config.build import build_config
from pykinml_func.config.toml import read_toml
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.formats.sources import read_structures
from pykinml_func.data.splits import read_split_files
from pykinml_func.training.model_file import load_model
from pykinml_func.types import Structures

EPOCHS = ["--epochs", "2", "--forces"]
SHORT = [*SMALL, *EPOCHS]
NETWORKS = SMALL[SMALL.index("--neurons") :]
"""`SMALL` without the AEVs, which a prepared set has"""
METHODS = {0: "made up", 1: "made up"}


@pytest.fixture
def pykinml(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command in an empty directory; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run_command, capsys)


def two_levels(structures: Structures) -> Structures:
    """Level 1 differs from level 0 by some tenths of an eV."""
    energies, forces = structures.energies.copy(), structures.forces.copy()
    energies[:, 1] = energies[:, 0] + 0.01 * structures.energies[:, 1] + 10
    forces[:, 1] = forces[:, 0] * 1.1
    return structures._replace(energies=energies, forces=forces)


@pytest.fixture
def databases(make_structures: Callable[..., Structures], tmp_path: Path) -> Path:
    """C2H2.db, C2H4.db and CH4.db, ten structures each with levels 0 and 1."""
    folder = tmp_path / "databases"
    folder.mkdir()
    for formula in ("C2H2", "C2H4", "CH4"):
        structures = two_levels(make_structures([formula] * 10, seed=3, levels=(0, 1)))
        write_database(folder / f"{formula}.db", structures, METHODS)
    return folder


def history(directory: Path) -> list[dict[str, float]]:
    """The metrics of each epoch, less its time."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def assert_same_history(one: Path, other: Path, tolerance: float) -> None:
    assert len(history(one)) == len(history(other)) > 0
    for a, b in zip(history(one), history(other), strict=True):
        assert a == pytest.approx(b, rel=tolerance)


def ani_and_extxyz(folder: Path, make_structures: Callable[..., Structures]) -> list[Path]:
    """C2H4 as ANI's HDF5 in Hartree, CH4 as extended XYZ, with the labels of level 1 that the databases have."""
    ethene, methane = (
        two_levels(make_structures([formula] * 10, seed=3, levels=(0, 1))) for formula in ("C2H4", "CH4")
    )
    with h5py.File(folder / "ani.h5", "w") as file:
        file["group/species"] = ethene.numbers[:6]
        file["group/coordinates"] = ethene.positions.reshape(10, 6, 3)
        file["group/energies"] = ethene.energies[:, 1] / Hartree
        file["group/forces"] = ethene.forces[:, 1].reshape(10, 6, 3) / Hartree
    images = [Atoms("CH4", positions) for positions in methane.positions.reshape(10, 5, 3)]
    for image, energy, forces in zip(images, methane.energies[:, 1], np.split(methane.forces[:, 1], 10), strict=True):
        image.calc = SinglePointCalculator(image, energy=energy, forces=forces)
    ase.io.write(folder / "set.extxyz", images)
    return [folder / "ani.h5", folder / "set.extxyz"]


def test_sources_of_three_formats_train_as_one(
    pykinml: Run, databases: Path, make_structures: Callable[..., Structures], tmp_path: Path
) -> None:
    others = ani_and_extxyz(tmp_path, make_structures)
    inputs = [word for path in (databases / "C2H2.db", *others) for word in ("--input", path)]
    mixed = pykinml("train", *inputs, *SHORT, "--output", "mixed")
    assert (mixed.code, mixed.err) == (0, "")
    for line in (
        "C2H2.db: PyKinML database, 10 structures, energies eV, forces eV/Å",
        "ani.h5: ANI HDF5, 10 structures, energies Hartree -> eV, forces Hartree/Å -> eV/Å",
        "set.extxyz: read by ASE, 10 structures, energies eV, forces eV/Å",
    ):
        assert line in flat(mixed.out)
    plain = pykinml("train", "--input", databases / "*.db", *SHORT, "--output", "plain")
    assert plain.code == 0
    assert_same_history(tmp_path / "mixed", tmp_path / "plain", 1e-5)
    marks = [read_split_files([tmp_path / name / "split.txt"]) for name in ("mixed", "plain")]
    names = {"ani": "C2H4", "set": "CH4", "C2H2": "C2H2"}
    assert {f"{names[name.split('/')[0]]}/{name.split('/')[1]}": mark for name, mark in marks[0].items()} == marks[1]
    ended = pykinml("predict", "mixed/model.safetensors", *others, "-o", "out.extxyz")
    assert (ended.code, len(ase.io.read("out.extxyz", index=":"))) == (0, 20)


def test_a_moved_prepared_set_is_all_that_training_needs(pykinml: Run, databases: Path, tmp_path: Path) -> None:
    common = ["--input", databases / "*.db", *SHORT]
    assert pykinml("train", *common, "--output", "plain", "--prepared", "other").code == 0
    assert pykinml("prepare", *common).code == 0
    shutil.rmtree(databases)
    shutil.rmtree("other")
    Path("prepared").rename(tmp_path / "elsewhere")
    ended = pykinml("train", "--pre-saved", "--data-path", "elsewhere", *NETWORKS, *EPOCHS, "--output", "moved")
    assert (ended.code, ended.err) == (0, "")
    assert "reused: elsewhere/" in ended.out
    assert_same_history(tmp_path / "moved", tmp_path / "plain", 1e-12)
    again = pykinml("train", *common, "--output", "again")
    assert again.code == 2 and "no file matches" in again.err
    contradicted = pykinml("train", "--pre-saved", "--data-path", "elsewhere", "--n-radial", 8, "--output", "again")
    assert contradicted.code == 2 and "n_radial" in contradicted.err
    assert not Path("again/model.safetensors").exists()


def test_training_goes_on_from_a_model(pykinml: Run, databases: Path, tmp_path: Path) -> None:
    """At a learning rate of next to nothing, the model stays what it was; at another it does not."""
    common = ["--input", databases / "*.db", *SMALL, "--epochs", 1]
    assert pykinml("train", *common, "--output", "first").code == 0
    start = ["--load-model", "--load-model-name", "first/model.safetensors"]
    ended = pykinml("train", *common, *start, "--learning-rate", "1e-14", "--floss", "--output", "second")
    assert (ended.code, ended.err) == (0, "")
    moving = pykinml("train", *common, *start, "--learning-rate", "1e-3", "--seeds", "0,1", "--output", "third")
    assert moving.code == 0

    def distance(name: str) -> float:
        found, first = (load_model(tmp_path / run / "model.safetensors")[1] for run in (name, "first"))
        assert torch.equal(found.self_energies, first.self_energies)
        return max((a - b).abs().max().item() for a, b in zip(tree_leaves(found), tree_leaves(first), strict=True))

    assert distance("second") < 1e-12
    assert 1e-4 < distance("third") < 1e-1
    assert re.search(r"first/model\.safetensors", ended.out)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--load-model-name none.safetensors", "no model file"),
        ("--load-model-name databases/CH4.db", "must be a model of `pykinml train`"),
        ("--load-model-name first/model.safetensors --multi-fid --fidlevel-lf 0", "fidelity levels"),
        ("--load-model-name first/model.safetensors --elements H,C", "elements"),
    ],
)
def test_a_model_that_cannot_be_continued_is_told(pykinml: Run, databases: Path, options: str, said: str) -> None:
    common = ["--input", databases / "*.db", *SMALL, "--epochs", 1]
    assert pykinml("train", *common, "--output", "first").code == 0
    ended = pykinml("train", *common, "--load-model", *options.split(), "--output", "second")
    assert ended.code == 2 and said in flat(ended.err)
    assert ended.err.startswith("Error: ") and not Path("second/model.safetensors").exists()


def test_a_run_is_resumed_with_more_epochs(pykinml: Run, databases: Path, tmp_path: Path) -> None:
    common = ["--input", databases / "*.db", *SMALL]
    assert pykinml("train", *common, "--epochs", 5, "--output", "whole").code == 0
    assert pykinml("train", *common, "--epochs", 2, "--output", "run").code == 0
    ended = pykinml("train", "--resume", "run", "--epochs", 5, "--save-every", 2, "--num-cores", 1)
    assert (ended.code, ended.err) == (0, "")
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    kept = build_config(read_toml(tmp_path / "run" / "config.toml")).training
    assert (kept.epochs, kept.save_every) == (5, 2)
    again = pykinml("train", "--resume", "run")
    assert again.code == 2 and "has had all its 5 epochs" in flat(again.err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume", "nowhere"], "resume must be the directory of a run, got nowhere without a config.toml"),
        (["run/config.toml", "--resume", "run"], "resume takes its settings from run, got run/config.toml too; leave"),
        (["--resume", "run", "--overwrite"], "resume takes its settings from run, got --overwrite too; leave one"),
        (
            ["--resume", "run", "--learning-rate", "0.1"],
            "learning_rate cannot change on the way; leave it out, or begin",
        ),
        (["--resume", "run", "--tr-batch-size", 9, "--savenm", "b"], "batch_size, output cannot change on the way"),
        (["--resume", "run", "--epochs", 9, "--scale-lr"], "scale_lr cannot change on the way"),
        (["--resume", "empty"], "empty must be the directory of a run that was cut short, got no checkpoints in it"),
    ],
)
def test_a_mistake_in_resuming_is_told_and_changes_nothing(
    pykinml: Run, databases: Path, tmp_path: Path, arguments: list[object], said: str
) -> None:
    assert pykinml("train", "--input", databases / "*.db", *SMALL, "--epochs", 2, "--output", "run").code == 0
    (tmp_path / "empty").mkdir()
    shutil.copy(tmp_path / "run" / "config.toml", tmp_path / "empty")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    ended = pykinml("train", *arguments)
    assert ended.code == 2 and said in flat(ended.err)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_difference_is_trained_and_predicted(pykinml: Run, databases: Path, tmp_path: Path) -> None:
    common = ["--input", databases / "*.db", *SMALL, "--delta", "--fidlevel-lf", 0]
    ended = pykinml("train", *common, "--epochs", 5, "--floss", "--learning-rate", "0.01", "--output", "run")
    assert (ended.code, ended.err) == (0, "")
    model = tmp_path / "run" / "model.safetensors"
    assert (load_model(model)[0].fidelities, load_model(model)[0].baseline) == ((1,), 0)
    predicted = pykinml("predict", model, databases / "C2H2.db", "--low-level", 0, "-o", "out.extxyz")
    assert (predicted.code, predicted.err) == (0, "")
    energies = [frame.get_potential_energy() for frame in ase.io.read("out.extxyz", index=":")]
    labels = [atoms.get_potential_energy() for atoms in read_structures([databases / "C2H2.db"], level=1)]
    errors = np.array(energies) - labels
    # Of -1000 eV that scatter by 5 eV; the difference, which is what the model knows, scatters by 0.05 eV.
    assert np.std(labels) > 2
    assert np.abs(errors).max() < 2 and np.std(errors) < 0.2
