"""`pykinml evaluate`: the errors that training reports, tables and JSON, of one model and of ensembles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from cli_calls import Run, flat, run_command

from pykinml_func.config.build import build_config
from pykinml_func.data.formats.database import write_database
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import RunResult, SilentReporter
from pykinml_func.types import Structures

KINDS: dict[str, dict[str, Any]] = {
    "one": {"fidelity": 1},
    "chain": {"multi_fidelity": True, "low_fidelity": (0,), "fidelity": 1},
    "delta": {"delta": True, "low_fidelity": (0,), "fidelity": 1},
    "ensemble": {"fidelity": 1, "ensemble": 3},
}
N = 16


@pytest.fixture(scope="module")
def folder(make_structures: Callable[..., Structures], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """C2H2.db and CH4.db of levels 0 and 1 with random labels, and files that cannot be used."""
    folder = tmp_path_factory.mktemp("evaluated")
    for formula in ("C2H2", "CH4"):
        structures = make_structures([formula] * N, seed=3, levels=(0, 1))
        write_database(folder / f"{formula}.db", structures, {0: "made up", 1: "made up"})
    ase.io.write(folder / "methane.xyz", molecule("CH4"))
    water = molecule("H2O")
    water.calc = SinglePointCalculator(water, energy=-1.0)
    ase.io.write(folder / "water.extxyz", water)
    (folder / "all.txt").write_text("".join(f"CH4/{m + 1} 2\n" for m in range(N)))
    (folder / "others.txt").write_text("C3H4/1 -1\n")
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> Mapping[str, RunResult]:
    """A run of each kind, trained to forces, which writes its directory under the kind's name."""
    found = {}
    for kind, levels in KINDS.items():
        settings = {
            "input": (str(folder / "*.db"),),
            "prepared": folder / "prepared",
            "output": folder / kind,
            **{"n_radial": 4, "n_angular_radial": 2, "n_angular": 2, "neurons": (5, 3, 1)},
            **{"activations": ("tanh", "gaussian", "identity"), "split": (14, 8, 10), "epochs": 2, "batch_size": 5},
            **{"compile": "off", "threads": 1, "forces": True, **levels},
        }
        found[kind] = fit(build_config(settings), SilentReporter())
    return found


@pytest.fixture
def pykinml(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    """Runs the command in the folder; returns its exit code and what it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run_command, capsys)


def evaluated(pykinml: Run, *arguments: object) -> dict[str, Any]:
    ended = pykinml("evaluate", *arguments, "--json")
    assert (ended.code, ended.err) == (0, "")
    found: dict[str, Any] = json.loads(ended.out)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_that_training_reports(pykinml: Run, runs: Mapping[str, RunResult], kind: str) -> None:
    model, split = Path(kind, "model.safetensors"), Path(kind, "split.txt")
    found = evaluated(pykinml, model, "C2H2.db", "CH4.db", "--split-files", split)
    reported = runs[kind].errors["test"]
    assert found["n_structures"] == 10
    assert found["n_members"] == (3 if kind == "ensemble" else 1)
    prefixes = {level: f"level_{level}_" for level in KINDS[kind].get("low_fidelity", ())} | {1: ""}
    levels = [0, 1] if kind == "chain" else [1]
    assert [each["level"] for each in found["levels"]] == levels
    for each in found["levels"]:
        for name in ("energy", "force"):
            for figure in ("mae", "rmse", "max"):
                expected = reported[f"{prefixes[each['level']]}{name}_{figure}"]
                assert each[name][figure] == pytest.approx(expected, rel=1e-9)
            assert each[name]["n_structures"] == 10


def test_an_ensemble_has_calibration_and_structures_beyond(pykinml: Run, runs: Mapping[str, RunResult]) -> None:
    assert runs
    found = evaluated(pykinml, "ensemble/model.safetensors", "C2H2.db", "CH4.db")
    for kind, number in (("energy", 2 * N), ("force", 2 * N * 3 * 9 // 2)):
        table = found[f"{kind}_calibration"]
        assert table["number"] == sum(each["number"] for each in table["bins"]) == number
        assert table["calibrated"] is True
        assert table["scale"] > 0 and 0 <= table["within"][0] <= table["within"][1] <= 1
    beyond = found["beyond"]
    assert beyond["energy"]["n_structures"] == beyond["number"]
    assert beyond["energy_others"]["n_structures"] == 2 * N - beyond["number"]
    assert found["units"] == {"energy": "kcal/mol", "force": "kcal/mol/Å"}


def test_what_is_not_known_is_null(pykinml: Run, runs: Mapping[str, RunResult], folder: Path) -> None:
    assert runs
    image = molecule("CH4")
    image.calc = SinglePointCalculator(image, energy=-1090.0)
    ase.io.write(folder / "labelled.extxyz", image)
    found = evaluated(pykinml, "chain/model.safetensors", "labelled.extxyz")
    assert [(each["level"], each["force"]) for each in found["levels"]] == [(1, None)]
    assert found["energy_calibration"] is None and found["force_calibration"] is None
    sides = {found["beyond"][name]["mae"] is None for name in ("energy", "energy_others")}
    assert sides == {True, False}, "one structure lies on one side"


def test_tables_say_the_same(pykinml: Run, runs: Mapping[str, RunResult]) -> None:
    assert runs
    found = evaluated(pykinml, "ensemble/model.safetensors", "*.db")
    ended = pykinml("evaluate", "ensemble/model.safetensors", "*.db")
    assert (ended.code, ended.err) == (0, "")
    text = flat(ended.out)
    (level,) = found["levels"]
    cells = [f"{level[kind][figure]:.3f}" for kind in ("energy", "force") for figure in ("mae", "rmse", "max")]
    assert f"1 {2 * N} {' '.join(cells[:3])} {2 * N} {' '.join(cells[3:])}" in text
    for kind in ("energy", "force"):
        table = found[f"{kind}_calibration"]
        assert f", calibrated: errors are {table['scale']:.2f} times as large as they say" in text
        assert (
            f"within one: {table['within'][0]:.1%} (Gaussian 68.3%; from 3 members {table['expected'][0]:.1%})" in text
        )
        for each in table["bins"]:
            assert f"{each['number']} {each['std']:.3f} {each['rmse']:.3f}" in text
    assert f"beyond the training data (extrapolation above 1): {found['beyond']['number']} of {2 * N}" in text
    assert "the mean of 3 members, on 32 structures of *.db" in text


def test_a_difference_is_told(pykinml: Run, runs: Mapping[str, RunResult]) -> None:
    assert runs
    assert "errors are of the difference to level 0" in flat(
        pykinml("evaluate", "delta/model.safetensors", "CH4.db").out
    )


WRONG = {
    "no model": ("none.safetensors CH4.db", "no model file"),
    "no data": ("one/model.safetensors none.db", "no file matches 'none.db'"),
    "no labels": ("one/model.safetensors methane.xyz", "looked for in energy_1 or a calculator's energy"),
    "unknown element": ("one/model.safetensors water.extxyz", "must be of the model's elements, C, H, got O"),
    "no level below": ("delta/model.safetensors labelled.extxyz", "at both levels 0 and 1, got none"),
    "no split file": ("one/model.safetensors CH4.db --split-files none.txt", "none.txt cannot be read"),
    "no test structure": ("one/model.safetensors CH4.db --split-files all.txt", "with -1, got 16 marked 2 alone"),
    "other structures": ("one/model.safetensors CH4.db --split-files others.txt", "C3H4/1"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_says_what_is_wrong(
    pykinml: Run, runs: Mapping[str, RunResult], folder: Path, case: str, json_option: list[str]
) -> None:
    assert runs
    image = molecule("CH4")
    image.calc = SinglePointCalculator(image, energy=-1090.0)
    ase.io.write(folder / "labelled.extxyz", image)
    arguments, said = WRONG[case]
    ended = pykinml("evaluate", *arguments.split(), *json_option)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Error: ") and said in flat(ended.err)


def test_predict_takes_an_ensemble(pykinml: Run, runs: Mapping[str, RunResult]) -> None:
    assert runs
    ended = pykinml("predict", "ensemble/model.safetensors", "CH4.db", "methane.xyz", "-o", "out.extxyz")
    assert (ended.code, ended.err) == (0, "")
    text = flat(ended.out)
    for said in ("energy std, eV", "largest force std, eV/Å", "extrapolation", "beyond the training data"):
        assert said in text
    frames: list[Atoms] = list(ase.io.iread("out.extxyz", index=":"))
    assert len(frames) == N + 1
    for frame in frames:
        assert frame.info["energy_std"] > 0 and frame.arrays["forces_std"].shape == (5, 3)
        assert frame.info["is_extrapolated"] == (frame.info["extrapolation"] > 1)
        largest = np.linalg.norm(frame.arrays["forces_std"], axis=1).max()
        assert f" {frame.info['energy_std']:.4f} {largest:.3f} " in text
    assert f"{sum(frame.info['is_extrapolated'] for frame in frames)} of {N + 1} structures beyond" in text
