"""`pykinml predict`: structures of any format in, a table and extended XYZ out, with or without a low level."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Hartree
from cli_calls import Run, flat, run_command

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.formats.sources import read_structures
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.predictor import Predictor
from pykinml_func.potential.energy import init_params
from pykinml_func.training.model_file import save_model
from pykinml_func.types import Params, Structures


class Files(NamedTuple):
    folder: Path
    """model files, and databases with levels 0 and 1"""
    structures: Structures
    """those of C2H2.db"""


def save_random_model(path: Path, seed: int, **levels: Any) -> None:
    aev = AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2)
    config = ModelConfig(aev=aev, neurons=(5, 1), activations=("tanh", "identity"), **levels)
    params = init_params(config, torch.Generator().manual_seed(seed))
    save_model(path, config, Params(params.networks, params.self_energies - 10.0 * seed))


@pytest.fixture(scope="module")
def files(make_structures: Callable[..., Structures], tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("models")
    save_random_model(folder / "high.safetensors", 1)
    save_random_model(folder / "low.safetensors", 2, fidelities=(0,))
    save_random_model(folder / "delta.safetensors", 3, baseline=0)
    save_random_model(folder / "shift.safetensors", 5, fidelities=(0,), baseline=7)
    save_random_model(folder / "chain.safetensors", 4, fidelities=(0, 1))
    methods = {0: "made up", 1: "made up"}
    for formula in ("CH4", "C2H2"):
        structures = make_structures([formula] * 5, seed=3, levels=(0, 1))
        write_database(folder / f"{formula}.db", structures, methods)
    energies, forces = structures.energies.copy(), structures.forces.copy()
    energies[2, 0], forces[4:8, 0] = np.nan, np.nan
    write_database(folder / "C2H2.some.db", structures._replace(energies=energies), methods)
    write_database(folder / "C2H2.energies.db", structures._replace(forces=forces), methods)
    ase.io.write(folder / "methane.xyz", molecule("CH4"))
    ase.io.write(folder / "water.xyz", molecule("H2O"))
    (folder / "config.toml").write_text("epochs = 3\n")
    (folder / "nonsense.xyz").write_text("nonsense")
    return Files(folder, structures)


@pytest.fixture
def pykinml(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command in an empty directory; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run_command, capsys)


def written(path: Path) -> list[Atoms]:
    return list(ase.io.iread(path, index=":"))


def rows(out: str) -> list[list[str]]:
    """The cells of the table, less number and formula."""
    return [[cell.strip() for cell in line.split("│")[3:-1]] for line in out.splitlines() if line.startswith("│")]


def headers(out: str) -> list[str]:
    """What stands above `rows`."""
    line = next(line for line in out.splitlines() if line.startswith("┃"))
    return [cell.strip() for cell in line.split("┃")[3:-1]]


def test_help_of_predict(pykinml: Run) -> None:
    text = flat(pykinml("predict", "--help").out)
    for said in ("(eV)", "(eV/Å)", "--output", "extxyz", "--low-level", "LEVEL|MODEL"):
        assert said in text


def test_reads_xyz_and_databases(pykinml: Run, files: Files, tmp_path: Path) -> None:
    methane, acetylene = molecule("CH4"), molecule("C2H2")[[2, 0, 3, 1]]
    ase.io.write(tmp_path / "two.xyz", [methane, acetylene])
    model, database = files.folder / "high.safetensors", files.folder / "C2H2.db"
    ended = pykinml("predict", model, "two.xyz", database, "-o", "out.extxyz")
    assert (ended.code, ended.err) == (0, "")
    expected = Predictor.load(model).predict([methane, acetylene, *read_structures([database])])
    frames = written(tmp_path / "out.extxyz")
    assert len(expected) == len(frames) == len(rows(ended.out)) == 7
    for prediction, frame, row in zip(expected, frames, rows(ended.out), strict=True):
        assert frame.get_potential_energy() == pytest.approx(prediction.energy, abs=1e-6)
        np.testing.assert_allclose(frame.get_forces(), prediction.forces, atol=1e-6)
        assert prediction.forces is not None
        assert row == [f"{prediction.energy:.6f}", f"{np.linalg.norm(prediction.forces, axis=1).max():.6f}"]
    assert frames[1].get_chemical_symbols() == ["H", "C", "H", "C"]
    assert [set(frame.info) for frame in frames] == [set()] * 2 + [{"id"}] * 5
    assert headers(ended.out) == ["energy, eV", "largest force, eV/Å"]
    assert "wrote out.extxyz" in ended.out


def other_formats(folder: Path, structures: Structures, suffix: str) -> list[Path]:
    """The structures as extended XYZ and as HDF5 of ANI, with labels of level 0 under names with this suffix."""
    n = structures.n_structures
    positions, forces = structures.positions.reshape(n, -1, 3), structures.forces[:, 0].reshape(n, -1, 3)
    with h5py.File(folder / "ani.h5", "w") as file:
        file["group/species"] = structures.numbers.reshape(n, -1)[0]
        file["group/coordinates"] = positions
        file[f"group/energies{suffix}"] = structures.energies[:, 0] / Hartree
        file[f"group/forces{suffix}"] = forces / Hartree
    images = [Atoms(structures.numbers.reshape(n, -1)[0], one) for one in positions]
    for image, energy, force in zip(images, structures.energies[:, 0], forces, strict=True):
        if suffix:
            image.info[f"energy{suffix}"], image.arrays[f"forces{suffix}"] = energy, force
        else:
            image.calc = SinglePointCalculator(image, energy=energy, forces=force)
    ase.io.write(folder / "set.extxyz", images)
    return [folder / "ani.h5", folder / "set.extxyz"]


def test_reads_other_formats(pykinml: Run, files: Files, tmp_path: Path) -> None:
    inputs = other_formats(tmp_path, files.structures, "")
    model = files.folder / "high.safetensors"
    ended = pykinml("predict", model, files.folder / "C2H2.db", *inputs, "-o", "out.extxyz")
    assert (ended.code, ended.err) == (0, "")
    energies = np.array([frame.get_potential_energy() for frame in written(tmp_path / "out.extxyz")])
    np.testing.assert_allclose(energies[5:], np.tile(energies[:5], 2), rtol=0, atol=1e-6)


def test_levels_have_columns_of_their_own(pykinml: Run, files: Files, tmp_path: Path) -> None:
    model, database = files.folder / "chain.safetensors", files.folder / "CH4.db"
    ended = pykinml("predict", model, database, "-o", "out.extxyz")
    assert headers(ended.out) == [
        text for k in (0, 1) for text in (f"energy of level {k}, eV", f"largest force of level {k}, eV/Å")
    ]
    expected = Predictor.load(model).predict(read_structures([database]))
    for frame, row, found in zip(written(tmp_path / "out.extxyz"), rows(ended.out), expected, strict=True):
        low, high = found.level_energies
        assert found.level_forces is not None
        largest = np.linalg.norm(found.level_forces, axis=2).max(axis=1)
        assert row == [f"{value:.6f}" for value in (low, largest[0], high, largest[1])]
        assert (frame.info["energy_0"], frame.get_potential_energy()) == pytest.approx((low, high), abs=1e-6)


def test_without_a_low_level_the_difference_is_told(pykinml: Run, files: Files, tmp_path: Path) -> None:
    model, database = files.folder / "delta.safetensors", files.folder / "C2H2.db"
    ended = pykinml("predict", model, database, "-o", "out.extxyz")
    assert (ended.code, ended.err) == (0, "")
    assert headers(ended.out) == ["energy difference, eV", "largest force difference, eV/Å"]
    frames, expected = written(tmp_path / "out.extxyz"), Predictor.load(model).predict(read_structures([database]))
    for frame, row, found in zip(frames, rows(ended.out), expected, strict=True):
        assert row[0] == f"{found.energy:.6f}"
        assert frame.calc is None
        assert frame.info["energy_difference"] == pytest.approx(found.energy, abs=1e-6)


def assert_written_sums(path: Path, files: Files, low: list[tuple[float, np.ndarray]]) -> None:
    """The difference that the model predicts for C2H2.db, and `low`, as often as the file holds them."""
    images = read_structures([files.folder / "C2H2.db"])
    differences = Predictor.load(files.folder / "delta.safetensors").predict(images)
    frames = written(path)
    assert len(frames) % len(images) == 0
    for k, frame in enumerate(frames):
        difference, (energy, forces) = differences[k % len(images)], low[k % len(images)]
        assert difference.forces is not None
        assert frame.get_potential_energy() == pytest.approx(difference.energy + energy, abs=1e-6)
        np.testing.assert_allclose(frame.get_forces(), difference.forces + forces, rtol=0, atol=1e-6)
        assert "energy_difference" not in frame.info


@pytest.mark.parametrize("suffix", ["_0", ""])
def test_a_level_of_the_files_is_added(pykinml: Run, files: Files, tmp_path: Path, suffix: str) -> None:
    inputs = other_formats(tmp_path, files.structures, suffix)
    model, database = files.folder / "delta.safetensors", files.folder / "C2H2.db"
    ended = pykinml("predict", model, database, *inputs, "--low_level", "0", "-o", "out.extxyz")
    assert (ended.code, ended.err) == (0, "")
    assert headers(ended.out) == ["energy, eV", "largest force, eV/Å"]
    assert len(rows(ended.out)) == 15
    energies, forces = files.structures.energies[:, 0], files.structures.forces[:, 0].reshape(5, 4, 3)
    assert_written_sums(tmp_path / "out.extxyz", files, list(zip(energies, forces, strict=True)))


def test_a_model_of_the_low_level_is_added(pykinml: Run, files: Files, tmp_path: Path) -> None:
    model, low, database = (files.folder / name for name in ("delta.safetensors", "low.safetensors", "C2H2.db"))
    ended = pykinml("predict", model, database, "--low-level", low, "-o", "out.extxyz")
    assert (ended.code, ended.err) == (0, "")
    assert headers(ended.out) == ["energy, eV", "largest force, eV/Å"]
    calculator, images = PyKinMLCalculator(low), read_structures([database])
    results = [(calculator.get_property("energy", one), calculator.get_property("forces", one)) for one in images]
    assert_written_sums(tmp_path / "out.extxyz", files, results)


WRONG = {
    "no model": ("none.safetensors water.xyz", "no model file"),
    "wrong model file": ("water.xyz water.xyz", "must be a model of `pykinml train`"),
    "config as model": ("config.toml water.xyz", "must be a model of `pykinml train`"),
    "unknown element": ("high.safetensors water.xyz", "must be of the model's elements, C, H, got O"),
    "no structures": ("high.safetensors none.xyz", "none.xyz"),
    "nonsense": ("high.safetensors nonsense.xyz", "in a format that ASE reads"),
    "low level for a level": (
        "high.safetensors CH4.db --low-level 0",
        "needs a model of delta learning, got one of level 1 itself; leave low_level out",
    ),
    "low level for levels": ("chain.safetensors CH4.db --low-level 0", "needs a model of delta learning"),
    "low model for a level": ("high.safetensors CH4.db --low-level low.safetensors", "needs a model of delta learning"),
    "another level": ("delta.safetensors CH4.db --low-level 1", "low_level must be the model's, 0, got 1"),
    "model of another level": (
        "delta.safetensors CH4.db --low-level high.safetensors",
        "high.safetensors, which is of level 1",
    ),
    "difference as low level": (
        "delta.safetensors CH4.db --low-level shift.safetensors",
        "shift.safetensors, which is a difference of levels",
    ),
    "no low model": ("delta.safetensors CH4.db --low-level none.safetensors", "no model file"),
    "a word": ("delta.safetensors CH4.db --low-level xtb", "no model file xtb"),
    "no label": ("delta.safetensors methane.xyz --low-level 0", "looked for in energy_0 or a calculator's energy"),
    "some labels": (
        "delta.safetensors CH4.db C2H2.some.db --low-level 0",
        "must have an energy at level 0, and 1 of 10 have none",
    ),
    "no forces": (
        "delta.safetensors C2H2.energies.db --low-level 0",
        "C2H2.energies/2 (C2H2) must have energy and forces of the low level",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_says_what_is_wrong(
    pykinml: Run, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(files.folder)
    arguments, said = WRONG[case]
    ended = pykinml("predict", *arguments.split(), "-o", tmp_path / "out.extxyz")
    assert (ended.code, ended.out) == (2, "")
    assert said in flat(ended.err)
    assert ended.err.startswith("Error: ") and "Traceback" not in ended.err
    assert not (tmp_path / "out.extxyz").exists()


def test_asks_for_the_folder_of_its_output_before_it_works(pykinml: Run, files: Files) -> None:
    ended = pykinml(
        "predict", files.folder / "high.safetensors", files.folder / "methane.xyz", "-o", "nowhere/out.extxyz"
    )
    assert ended.code == 2 and "make nowhere first" in ended.err


def test_an_output_that_cannot_be_written_is_named(pykinml: Run, files: Files, tmp_path: Path) -> None:
    (tmp_path / "other" / "out.extxyz").mkdir(parents=True)
    ended = pykinml(
        "predict", files.folder / "high.safetensors", files.folder / "methane.xyz", "-o", "other/out.extxyz"
    )
    assert (ended.code, ended.err) == (2, "Error: other/out.extxyz cannot be written: Is a directory\n")


def test_keeps_its_inputs_and_names_its_format(pykinml: Run, files: Files) -> None:
    model, low, methane = (files.folder / name for name in ("delta.safetensors", "low.safetensors", "methane.xyz"))
    for path in (model, low, methane):
        before = path.read_bytes()
        ended = pykinml("predict", model, methane, "--low-level", low, "-o", path)
        assert ended.code == 2 and "output must differ from what is read" in ended.err
        assert path.read_bytes() == before
    ended = pykinml("predict", model, methane, "-o", "out.traj")
    assert ended.code == 2 and "name it .extxyz or .xyz" in ended.err


def test_output_suits_a_pipe_that_knows_only_ascii(files: Files) -> None:
    command = [sys.executable, "-m", "pykinml_func.cli", "predict", "high.safetensors", "methane.xyz"]
    environment = {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, check=False, capture_output=True, cwd=files.folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"CH4" in done.stdout and b"\x1b" not in done.stdout
    assert all(byte < 128 for byte in done.stdout)


def test_predicts_with_a_converted_model_of_pykinml(pykinml: Run, shared: Path, tmp_path: Path) -> None:
    reference = np.load(shared / "parity" / "pykinml_checkpoint_reference.npz")
    images = [Atoms("C5H5", positions) for positions in reference["positions"]]
    ase.io.write(tmp_path / "c5h5.extxyz", images)
    checkpoint = shared / "parity" / "pykinml_checkpoint.pt"
    assert pykinml("convert", checkpoint, "c5h5.safetensors", "--defaults").code == 0
    ended = pykinml("predict", "c5h5.safetensors", "c5h5.extxyz", "-o", "out.extxyz")
    assert (ended.code, ended.err) == (0, "")
    energies = [frame.get_potential_energy() for frame in written(tmp_path / "out.extxyz")]
    np.testing.assert_allclose(energies, reference["energies"], rtol=0, atol=1e-6)  # positions were written to 1e-8 Å
