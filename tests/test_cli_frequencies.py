"""`pykinml frequencies`: models and a structure in; a table, and files of modes out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.vibrations import VibrationsData
from bound_models import bound_model, minimum
from cli_calls import Run, flat, run_command
from torch.utils._pytree import tree_map

from pykinml_func.inference.thermochemistry import Conditions, thermochemistry
from pykinml_func.inference.vibrations import vibrations
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training.model_file import save_ensemble, save_model
from pykinml_func.types import Calibration, Ensemble


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and structures at rest and not."""
    root = tmp_path_factory.mktemp("frequencies")
    for variant in range(3):
        save_model(root / f"{variant}.safetensors", *bound_model(variant))
    save_model(root / "delta.safetensors", *bound_model(baseline=0))
    fixed = molecule("H2O")
    fixed.set_constraint(FixAtoms([0]))
    for name, atoms in {
        "h2co": minimum("H2CO"),
        "loose": molecule("H2CO"),
        "n2": molecule("N2"),
        "fixed": fixed,
    }.items():
        ase.io.write(root / f"{name}.extxyz", atoms)
    ase.io.write(root / "two.extxyz", [minimum("CO"), minimum("H2CO")])
    return root


@pytest.fixture
def pykinml(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run_command, capsys)


def cells(out: str) -> dict[str, list[str]]:
    """The rows of both tables by their first cell."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def test_help(pykinml: Run) -> None:
    text = flat(pykinml("frequencies", "--help").out)
    for said in ("MODEL...", "INPUT", "--relax", "--temperature", "--pressure", "--symmetry", "--spin", "--output"):
        assert said in text


def test_a_minimum(pykinml: Run, tmp_path: Path) -> None:
    ended = pykinml("frequencies", "0.safetensors", "h2co.extxyz", "--symmetry", 2, "-o", tmp_path / "modes.xyz")
    assert (ended.code, ended.err) == (0, "")
    found = vibrations(bound_model(), ase.io.read("h2co.extxyz"))
    gas, shown = thermochemistry(found, Conditions(symmetry=2)).of_mean, cells(ended.out)
    assert [shown[str(mode)] for mode in range(1, 7)] == [[f"{wavenumber:.1f}"] for wavenumber in found.wavenumbers]
    assert shown["Gibbs energy"][0] == f"{gas.gibbs_energy:.6f}"
    frames = ase.io.read(tmp_path / "modes.xyz", index=":")
    np.testing.assert_allclose([frame.info["wavenumber"] for frame in frames], found.wavenumbers, atol=1e-6)


def test_several_models_relax_together(pykinml: Run, tmp_path: Path) -> None:
    models = [f"{variant}.safetensors" for variant in range(3)]
    options = ["--relax", "--temperature", 500, "--pressure", 1e5, "--spin", 1.5, "-o", tmp_path / "modes.json"]
    ended = pykinml("frequencies", *models, "loose.extxyz", *options)
    assert (ended.code, ended.err) == (0, "")
    found = vibrations([bound_model(variant) for variant in range(3)], molecule("H2CO"), relax=True)
    gas = thermochemistry(found, Conditions(500.0, 1e5, 1, 1.5))
    shown = cells(ended.out)
    assert "mean of 3 members" in ended.out and "at 500 K and 100000 Pa, symmetry number 1, spin 1.5" in ended.out
    assert shown["1"] == [f"{found.wavenumbers[0]:.1f}", f"{found.member_wavenumbers[:, 0].std(ddof=1):.1f}"]
    assert float(shown["enthalpy"][0]) == pytest.approx(gas.of_mean.enthalpy, abs=2e-6)
    data = VibrationsData.read(tmp_path / "modes.json")
    np.testing.assert_allclose(data.get_frequencies()[6:].real, found.wavenumbers, atol=0.01)


def test_an_ensemble_file_is_its_members(pykinml: Run) -> None:
    """Its calibration, which is of energies and forces at once, does not touch the spreads here."""
    members = stack_members([bound_model(variant)[1] for variant in range(3)])
    scales = [torch.tensor([9.0])] * 2
    whole = Ensemble(bound_model()[0], members, Calibration(*scales, torch.tensor(1.0)))
    save_ensemble("whole.safetensors", whole)
    save_ensemble("pair.safetensors", Ensemble(whole.model_config, tree_map(lambda leaf: leaf[:2], members)))
    apart = pykinml("frequencies", *[f"{variant}.safetensors" for variant in range(3)], "h2co.extxyz", "--relax")
    assert apart.code == 0 and "mean of 3 members" in apart.out
    assert pykinml("frequencies", "whole.safetensors", "h2co.extxyz", "--relax") == apart
    assert pykinml("frequencies", "pair.safetensors", "2.safetensors", "h2co.extxyz", "--relax") == apart


def test_several_structures(pykinml: Run) -> None:
    ended = pykinml("frequencies", "0.safetensors", "two.extxyz")
    assert ended.code == 0
    assert "two.extxyz@0 (CO): linear, minimum" in ended.out and "two.extxyz@1 (CH2O): nonlinear" in ended.out


WRONG = {
    "no model": ("none.safetensors h2co.extxyz", "no model file"),
    "wrong model file": ("h2co.extxyz h2co.extxyz", "must be a model of `pykinml train`"),
    "no structure": ("0.safetensors none.xyz", "no structure file none.xyz"),
    "unknown element": ("0.safetensors n2.extxyz", "must be of the model's elements, C, H, O, got N"),
    "held atoms": ("0.safetensors fixed.extxyz", "fixed.extxyz@0 (H2O) must be free to move, got constraints"),
    "difference": ("delta.safetensors h2co.extxyz", "got one of level 1 less level 0"),
    "other settings": (
        "0.safetensors delta.safetensors h2co.extxyz",
        "delta.safetensors differs from the first in baseline",
    ),
    "cold": ("0.safetensors h2co.extxyz --temperature 0", "temperature must be above 0 K, got 0"),
    "odd spin": ("0.safetensors h2co.extxyz --spin 0.3", "spin must be half the number of unpaired electrons"),
    "no symmetry": ("0.safetensors h2co.extxyz --symmetry 0", "symmetry must be a symmetry number of 1 or more, got 0"),
    "format": ("0.safetensors h2co.extxyz -o modes.traj", "output must end in .xyz, .extxyz, .molden or .json"),
    "no folder": ("0.safetensors h2co.extxyz -o nowhere/modes.xyz", "make nowhere first"),
    "its input": ("0.safetensors h2co.extxyz -o h2co.extxyz", "output must differ from what is read"),
    "two structures": ("0.safetensors two.extxyz -o modes.xyz", "output takes the modes of one structure, got 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_says_what_is_wrong(pykinml: Run, folder: Path, case: str) -> None:
    arguments, said = WRONG[case]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ended = pykinml("frequencies", *arguments.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in flat(ended.err) and ended.err.startswith("Error: ")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
