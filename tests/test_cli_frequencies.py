"""`pykinml frequencies`: models and a structure in; a table, and files of modes out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.vibrations import VibrationsData
from bound_models import bound_model, minimum, spread_known, upside_down
from cli_calls import Run, flat, run_command
from torch.utils._pytree import tree_map

from pykinml_func.inference.thermochemistry import Conditions, thermochemistry
from pykinml_func.inference.vibrations import vibrations
from pykinml_func.training.model_file import save_ensemble, save_model
from pykinml_func.types import Ensemble


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and structures at rest and not."""
    root = tmp_path_factory.mktemp("frequencies")
    for variant in range(3):
        save_model(root / f"{variant}.safetensors", *bound_model(variant))
    save_model(root / "delta.safetensors", *bound_model(baseline=0))
    save_model(root / "low.safetensors", *bound_model(1, fidelities=(0,)))
    save_model(root / "falling.safetensors", *upside_down(bound_model()))
    save_ensemble(root / "whole.safetensors", spread_known(0.3))
    fixed = molecule("H2O")
    fixed.set_constraint(FixAtoms([0]))
    for name, atoms in {
        "h2co": minimum("H2CO"),
        "loose": molecule("H2CO"),
        "n2": molecule("N2"),
        "fixed": fixed,
        "atom": Atoms("O"),
        "apart": molecule("H2O") + Atoms("H", [(15, 0, 0)]),
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
    for said in (
        "MODEL...",
        "INPUT",
        "--relax",
        "--low-level",
        "--temperature",
        "--pressure",
        "--symmetry",
        "--spin",
        "--output",
    ):
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


def without_extrapolation(out: str) -> str:
    return "".join(line for line in out.splitlines(keepends=True) if "beyond the training data" not in line)


def test_a_structure_beyond_the_training_data(pykinml: Run) -> None:
    found = vibrations(spread_known(0.3), ase.io.read("h2co.extxyz"))
    ended = pykinml("frequencies", "whole.safetensors", "h2co.extxyz")
    assert f"! beyond the training data: extrapolation {found.extrapolation:.2f}, above 1" in ended.out


def test_a_model_of_a_difference_is_added_to_its_low_level(pykinml: Run) -> None:
    ended = pykinml("frequencies", "delta.safetensors", "h2co.extxyz", "--relax", "--low-level", "low.safetensors")
    assert (ended.code, ended.err) == (0, "")
    low = bound_model(1, fidelities=(0,))
    found = vibrations(bound_model(baseline=0), ase.io.read("h2co.extxyz"), relax=True, low_level=low)
    shown = cells(ended.out)
    assert [shown[str(mode)] for mode in range(1, 7)] == [[f"{wavenumber:.1f}"] for wavenumber in found.wavenumbers]
    assert shown["energy"][0] == f"{found.energies[0]:.6f}"


def test_fragments_that_are_apart_have_modes_and_no_thermochemistry(pykinml: Run) -> None:
    ended = pykinml("frequencies", "0.safetensors", "apart.extxyz", "--relax")
    assert (ended.code, ended.err) == (0, "")
    assert "(H3O): nonlinear, not one molecule" in ended.out and "got 3 of 6 vibrations within 1 cm^-1" in ended.out
    assert set(cells(ended.out)) == set("123456")


def test_an_ensemble_file_is_its_members(pykinml: Run) -> None:
    """Its calibration, which is of energies and forces at once, does not touch the spreads here."""
    whole = spread_known(0.3)
    save_ensemble("pair.safetensors", Ensemble(whole.model_config, tree_map(lambda leaf: leaf[:2], whole.members)))
    apart = pykinml("frequencies", *[f"{variant}.safetensors" for variant in range(3)], "h2co.extxyz", "--relax")
    assert apart.code == 0 and "mean of 3 members" in apart.out
    known = pykinml("frequencies", "whole.safetensors", "h2co.extxyz", "--relax")
    assert without_extrapolation(known.out) == apart.out
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
    "cold": ("0.safetensors h2co.extxyz --temperature 0", "temperature must be between 1e-30 and 1e+12 K, got 0"),
    "cold saddle point": ("falling.safetensors h2co.extxyz --temperature 0", "temperature must be between"),
    "atom": ("0.safetensors atom.extxyz -o o.xyz", "atom.extxyz@0 (O) has no modes to write to o.xyz"),
    "no difference": ("0.safetensors h2co.extxyz --low-level low.safetensors", "low_level needs a model of delta"),
    "another level": (
        "delta.safetensors h2co.extxyz --low-level 0.safetensors",
        "low_level must be a model of level 0",
    ),
    "its low level": (
        "delta.safetensors h2co.extxyz --low-level low.extxyz -o low.extxyz",
        "output must differ from what is read",
    ),
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
