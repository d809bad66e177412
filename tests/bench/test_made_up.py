"""Databases made of shaken structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from bench import made_up
from bench.made_up import CLOSEST, DISPLACEMENT, make_database, shaken
from bench.peers.problem import MODEL, networks
from pykinml_func import Predictor, save_model
from pykinml_func.data.formats.database import read_databases

PAIR = np.array([[[0.0, 0, 0], [1.1, 0, 0]]])


def test_atoms_are_displaced_and_stay_apart():
    found = shaken(np.concatenate([PAIR, PAIR * CLOSEST / 1.1]), 2000, np.random.default_rng(0))
    distances = np.linalg.norm(found[:, 0] - found[:, 1], axis=1)
    assert distances.min() >= CLOSEST
    assert np.abs(distances - 1.1).min() < 1e-3 and (distances < CLOSEST + 1e-2).any(), "of both structures"
    assert found[:, 0].std() == pytest.approx(DISPLACEMENT, rel=0.1)


def test_the_same_seed_gives_the_same_structures():
    first, second, other = (shaken(PAIR, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_a_database_holds_what_the_model_says_of_its_structures(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(made_up, "_CHUNK", 30)
    model, path = tmp_path / "model.safetensors", tmp_path / "made" / "C5H5.db"
    save_model(model, MODEL, networks())
    said: list[str] = []
    make_database(path, 60, shared / "data", model, said.append)
    assert len(said) == 2 and [file.name for file in path.parent.iterdir()] == ["C5H5.db"]
    found = read_databases([path])
    positions = found.positions.reshape(60, 10, 3)
    assert len(np.unique(positions, axis=0)) == 60, "chunks are not repeated"
    predicted = Predictor.load(model).predict([Atoms("C5H5", each) for each in positions])
    assert found.energies[:, 0] == pytest.approx([each.energy for each in predicted], abs=1e-9)
    assert found.forces[:, 0].reshape(60, 10, 3) == pytest.approx(np.array([each.forces for each in predicted]))
    before = path.stat().st_mtime_ns
    make_database(path, 60, shared / "data", model, said.append)
    assert path.stat().st_mtime_ns == before
