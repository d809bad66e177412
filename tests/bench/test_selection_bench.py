"""What `bench.selection` tests on, starts from and may choose; how it measures; that its figures are of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from bench import selection
from bench.fidelities import read
from bench.peers.problem import images
from bench.selection import MEASURES, RANDOM, SELECTED, START, UNSURE, choices, divide, errors, means
from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.inference.predictor import Predictor
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.types import Ensemble, Structures
from pykinml_func.units import KCAL_PER_MOL

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"


@pytest.fixture(scope="module")
def structures() -> Structures:
    return read(DATA)


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    aev = AEVConfig(elements=("C", "H", "O"), n_radial=4, n_angular_radial=2, n_angular=2)
    config = ModelConfig(aev=aev, neurons=(4, 1), activations=("gaussian", "identity"))
    members = [init_params(config, torch.Generator().manual_seed(seed)) for seed in range(3)]
    return Ensemble(config, stack_members(members))


def test_every_seed_tests_on_the_same_and_starts_from_others(structures: Structures) -> None:
    divided = [divide(structures, 100, seed) for seed in (0, 1)]
    for test, start, pool in divided:
        np.testing.assert_array_equal(test, divided[0][0])
        assert [len(part) for part in (test, start, pool)] == [120, 100, 380]
        assert len(set(np.concatenate([test, start, pool]).tolist())) == 600
    assert set(divided[0][1]) != set(divided[1][1])


def test_each_way_chooses_as_many(structures: Structures, ensemble: Ensemble) -> None:
    pool = images(structures.take(divide(structures, 100, 0)[2][:60]))
    found = choices(ensemble, pool, 10, 0)
    assert list(found) == [SELECTED, UNSURE, RANDOM]
    assert all(len(set(chosen.tolist())) == 10 and max(chosen) < 60 for chosen in found.values())
    assert found[SELECTED][0] == found[UNSURE][0], "the most unsure is where selection begins"
    assert found[RANDOM].tolist() != choices(ensemble, pool, 10, 1)[RANDOM].tolist()


def test_a_known_error_is_measured(structures: Structures, ensemble: Ensemble) -> None:
    """Labels that are the predictions, but for 1 eV and for 1 eV/Å of one component."""
    test = divide(structures, 100, 0)[0][:20]
    taken = structures.take(test)
    found = Predictor(ensemble).predict(images(structures.take(test)))
    forces = np.concatenate([prediction.forces for prediction in found if prediction.forces is not None])
    taken.energies[:, 1], taken.forces[:, 1] = [prediction.energy for prediction in found], forces
    taken.energies[3, 1] += 1
    taken.forces[7, 1, 2] -= 1
    figures = errors(ensemble, taken, np.arange(20))
    assert list(figures) == list(MEASURES)
    assert figures["energy_mae"] == pytest.approx(KCAL_PER_MOL / 20)
    assert figures["energy_rmse"] == pytest.approx(KCAL_PER_MOL / np.sqrt(20))
    assert figures["force_mae"] == pytest.approx(KCAL_PER_MOL / forces.size)
    assert figures["energy_max"] == pytest.approx(KCAL_PER_MOL) == figures["force_max"]
    assert figures["force_p95"] == pytest.approx(0.05 * KCAL_PER_MOL)


def test_more_labels_than_half_of_the_pool_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    app = typer.Typer()
    app.command()(selection.main)
    ended = CliRunner().invoke(app, ["--data", str(DATA), "--labels", "241"])
    assert ended.exit_code == 2 and "at most 240, half of what does not test, got 241" in ended.output


def test_the_figures_are_means_of_the_rows() -> None:
    report = json.loads((ROOT / "bench" / "results" / "selection.json").read_text())
    rows = report["rows"]
    assert sorted({(row["way"], row["seed"]) for row in rows}) == sorted(
        (way, seed) for way in (START, SELECTED, UNSURE, RANDOM) for seed in range(3)
    )
    assert report["mean"] == means(rows)
    assert report["mean"][SELECTED]["energy_rmse"] < report["mean"][RANDOM]["energy_rmse"]
