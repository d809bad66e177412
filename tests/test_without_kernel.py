"""Where the compiled AEVs were not built: torch's take their place, and nothing that a user sees is another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch.utils._pytree import tree_leaves

from pykinml_func.config import AEVConfig, DataConfig, ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.prepared import complete, open_prepared
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.predictor import Predictor
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.features import Geometry, TabulatedGeometry
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.optimizers import adam
from pykinml_func.training.step import Objective, build_train_step, init_state
from pykinml_func.types import Structures, TrainState

pytestmark = pytest.mark.skipif(not aev_kernel.available(), reason="there is nothing to compare with")

TOLERANCE = 1e-10
FORMULAS = ["CH4", "H", "C2H4O", "CO", "CH3OH", "H2O"]
AEV = AEVConfig(elements=("C", "H", "O"), n_radial=5, n_angular_radial=3, n_angular=4)
MODEL = ModelConfig(aev=AEV, neurons=(8, 5, 1), activations=("gaussian", "tanh", "identity"), fidelities=(0, 1))
PARAMS = init_params(MODEL, torch.Generator().manual_seed(0))


@pytest.fixture
def both_ways(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """What a function gives with the compiled AEVs, and without."""

    def of(function: Callable[[], Any]) -> tuple[Any, Any]:
        compiled = function()
        with monkeypatch.context() as patch:
            patch.setattr(aev_kernel, "available", lambda: False)
            patch.setattr(aev_kernel, "_call", None)  # so that it is not taken after all
            return compiled, function()

    return of


def assert_close(one: Any, other: Any) -> None:
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=TOLERANCE)


def images_of(structures: Structures) -> list[Atoms]:
    return [
        Atoms(structures.numbers[a:b], structures.positions[a:b])
        for a, b in zip(structures.offsets[:-1], structures.offsets[1:], strict=True)
    ]


@pytest.mark.parametrize("eager_calls", [0, 10], ids=["recorded", "plain"])
def test_training_steps(
    make_structures: Callable[..., Structures],
    make_source: Callable[..., Source],
    both_ways: Callable[..., tuple[Any, Any]],
    eager_calls: int,
):
    structures = make_structures(FORMULAS, levels=(0, 1))
    source = make_source(structures._replace(energies=structures.energies + 1000), AEV, "positions")
    kinds: list[type] = []

    def trained() -> TrainState:
        objective = Objective(forces=True, learned=True)
        step = RecordedStep(build_train_step(MODEL, adam(), objective), eager_calls=eager_calls)
        state = init_state(PARAMS, adam(), objective, 1e-2)
        packer = Packer(source, np.arange(6), 3, torch.float64, torch.device("cpu"))
        for _ in range(3):
            for batch in packer.batches(np.array([4, 0, 2, 1, 3, 5])):
                kinds.append(type(batch.features))
                state, _ = step(state, batch)
        return state

    assert_close(*both_ways(trained))
    assert kinds == [Geometry] * 6 + [TabulatedGeometry] * 6


def test_predictions(make_structures: Callable[..., Structures], both_ways: Callable[..., tuple[Any, Any]]):
    images = images_of(make_structures(FORMULAS, seed=2))

    def predicted() -> list[Any]:
        return [(each.level_energies, each.level_forces) for each in Predictor(MODEL, PARAMS).predict(images)]

    assert_close(*both_ways(predicted))


def test_the_calculator(make_structures: Callable[..., Structures], both_ways: Callable[..., tuple[Any, Any]]):
    images = images_of(make_structures(FORMULAS[:3], seed=3))
    other = init_params(MODEL, torch.Generator().manual_seed(1))

    def calculated() -> list[Any]:
        calculator, found = PyKinMLCalculator([(MODEL, PARAMS), (MODEL, other)]), []
        for atoms in images:
            calculator.calculate(atoms)
            found.append([calculator.results[name] for name in ("energy", "forces", "energy_std", "forces_std")])
        return found

    assert_close(*both_ways(calculated))


def test_a_recorded_calculator(
    make_structures: Callable[..., Structures],
    both_ways: Callable[..., tuple[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
):
    (atoms,) = images_of(make_structures(["CH3OH"], seed=3))
    monkeypatch.setattr("pykinml_func.inference.molecule.RecordedStep", lambda step: RecordedStep(step, eager_calls=0))

    def calculated() -> list[Any]:
        calculator = PyKinMLCalculator((MODEL, PARAMS))
        return [(calculator.get_property("energy", a), calculator.get_property("forces", a)) for a in (atoms, atoms)]

    assert_close(*both_ways(calculated))


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_prepared_sets(
    make_structures: Callable[..., Structures],
    both_ways: Callable[..., tuple[Any, Any]],
    tmp_path: Path,
    precision: str,
):
    """Also in that one is found again where the other was made."""
    write_database(tmp_path / "CH4.db", make_structures(["CH4"] * 5, 1), {1: "made up"})
    folders = iter(("compiled", "torch"))

    def prepared() -> list[np.ndarray]:
        folder = tmp_path / next(folders)
        data = DataConfig(input=(str(tmp_path / "CH4.db"),), prepared=folder)
        made = open_prepared(data, AEV.model_copy(update={"elements": ("C", "H")}), precision)
        complete(made, "jacobians")
        return [made.aevs, made.jacobians, np.array([ord(letter) for letter in made.path.name])]

    compiled, by_torch = both_ways(prepared)
    tolerance = TOLERANCE if precision == "float64" else 1e-6  # both were rounded to it
    for one, other in zip(compiled, by_torch, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
