"""The ASE calculator: forces are -dE/dx, dynamics keeps energy, changes are seen, what it cannot do is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet

from pykinml_func.config import ModelConfig
from pykinml_func.errors import DataError, ModelError
from pykinml_func.inference import calculator as module
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.predictor import Predictor
from pykinml_func.training.checkpoint import save_model
from pykinml_func.types import Params

Model = tuple[ModelConfig, Params]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """compile=True traces as ever, but does not spend the minute that compilation takes."""

    def as_it_is(step: Callable[..., Any]) -> Callable[..., Any]:
        return step

    monkeypatch.setattr(module, "CompiledStep", as_it_is)
    monkeypatch.setattr(module, "repays_compilation", lambda mode, *_: mode == "on")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["model", "chain_model", "delta_model"])
@pytest.mark.usefixtures("uncompiled")
def test_equals_the_predictor(request: pytest.FixtureRequest, molecules: list[Atoms], name: str, compiled: bool):
    """At the highest of several levels; the difference where no low level is given."""
    model = request.getfixturevalue(name)
    molecules = molecules[:2] if compiled else molecules  # to trace one takes a second
    calculator = PyKinMLCalculator(model, compile=compiled)
    for atoms, prediction in zip(molecules, Predictor(*model).predict(molecules), strict=True):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(prediction.energy, rel=0, abs=1e-10)
        assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
        np.testing.assert_allclose(atoms.get_forces(), prediction.forces, rtol=0, atol=1e-10)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("uncompiled")
def test_a_low_level_is_added(delta_model: Model, molecules: list[Atoms], low_level: LennardJones, compiled: bool):
    """As the predictor and as ASE add it, again and again, whether energy or forces are asked for first."""
    molecules = molecules[:1] if compiled else molecules
    calculator = PyKinMLCalculator(delta_model, low_level=low_level, compile=compiled)
    total = SumCalculator([PyKinMLCalculator(delta_model), LennardJones(**low_level.parameters)])
    predictions = Predictor(*delta_model).predict(molecules, low_level=low_level)
    for atoms, prediction in zip(molecules, predictions, strict=True):
        atoms.calc = calculator
        np.testing.assert_allclose(atoms.get_forces(), prediction.forces, rtol=0, atol=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), total.get_property("forces", atoms), rtol=0, atol=1e-10)
        assert atoms.get_potential_energy() == pytest.approx(prediction.energy, rel=0, abs=1e-10)
        assert atoms.get_potential_energy() == pytest.approx(total.get_property("energy", atoms), rel=0, abs=1e-10)
        assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
        atoms.positions[0, 0] += 0.05
        (again,) = Predictor(*delta_model).predict([atoms], low_level=low_level)
        assert atoms.get_potential_energy() == pytest.approx(again.energy, rel=0, abs=1e-10)


def test_forces_with_a_low_level_are_minus_the_gradient(
    delta_model: Model, molecules: list[Atoms], low_level: LennardJones
):
    for atoms in molecules[:6]:
        atoms.calc = PyKinMLCalculator(delta_model, low_level=low_level)
        numerical = calculate_numerical_forces(atoms, eps=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), numerical, rtol=0, atol=1e-6)


def test_a_low_level_that_fails_names_the_structure(delta_model: Model):
    water = molecule("H2O")
    water.calc = PyKinMLCalculator(
        delta_model, low_level=SinglePointCalculator(water, energy=1.0, forces=np.zeros((3, 3)))
    )
    water.get_potential_energy()
    water.positions[0] += 0.1
    with pytest.raises(DataError, match=r"the structure \(H2O\) must have .* for the positions that it has now"):
        water.get_potential_energy()


@pytest.mark.usefixtures("uncompiled")
def test_compiles_once_a_molecule(model: Model, monkeypatch: pytest.MonkeyPatch):
    compiled: list[object] = []

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(step)
        return step

    monkeypatch.setattr(module, "CompiledStep", counted)
    calculator, expected = PyKinMLCalculator(model, compile=True), PyKinMLCalculator(model)
    for name in ("H2CO", "H2O", "H2CO"):
        atoms = molecule(name)
        for shift in (0.0, 0.1):
            atoms.positions[0] += shift
            assert calculator.get_property("energy", atoms) == pytest.approx(expected.get_property("energy", atoms))
    assert len(compiled) == 2


def test_forces_are_minus_the_gradient(model: Model, molecules: list[Atoms]):
    for atoms in molecules[:6]:
        atoms.calc = PyKinMLCalculator(model)
        numerical = calculate_numerical_forces(atoms, eps=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), numerical, rtol=0, atol=1e-6)


def test_energy_is_conserved(model: Model):
    """Verlet's error is of second order in the time step: a quarter at half of it."""

    def run(femtoseconds: float, steps: int) -> tuple[float, float]:
        atoms = molecule("CH3CH2OH")
        atoms.calc = PyKinMLCalculator(model)
        atoms.set_momenta(np.random.default_rng(4).normal(0, 0.3, (9, 3)) * np.sqrt(atoms.get_masses())[:, None])
        dynamics = VelocityVerlet(atoms, femtoseconds * units.fs)
        totals, kinetic = [atoms.get_total_energy()], [atoms.get_kinetic_energy()]
        for _ in range(steps):
            dynamics.run(1)
            totals.append(atoms.get_total_energy())
            kinetic.append(atoms.get_kinetic_energy())
        return float(np.ptp(totals)), float(np.ptp(kinetic))

    (coarse, exchanged), (fine, _) = run(0.2, 50), run(0.1, 100)
    assert fine == pytest.approx(coarse / 4, rel=0.1)
    assert coarse < 1e-5  # eV, in 10 fs
    assert coarse < 1e-3 * exchanged


def test_results_follow_positions_and_numbers(model: Model, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def counted(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append("call")
        return energy_and_forces(*arguments)

    energy_and_forces = module.energy_and_forces
    monkeypatch.setattr(module, "energy_and_forces", counted)
    atoms, predictor = molecule("H2CO"), Predictor(*model)
    atoms.calc = PyKinMLCalculator(model)

    def is_right(evaluations: int) -> bool:
        (expected,) = predictor.predict([atoms])
        same = abs(atoms.get_potential_energy() - expected.energy) < 1e-10
        return (
            same and np.allclose(atoms.get_forces(), expected.forces, rtol=0, atol=1e-10) and len(calls) == evaluations
        )

    assert is_right(1)
    assert is_right(1)
    atoms.set_positions(atoms.positions + np.eye(4, 3) * 0.1)
    assert is_right(2)
    atoms.set_atomic_numbers(atoms.numbers[::-1])
    assert is_right(3)
    atoms.extend(Atoms("H", [[3.0, 0, 0]]))
    assert is_right(4)


def test_float32_networks_keep_float64_self_energies(model: Model, single_model: Model):
    atoms = molecule("CH3CH2OH")
    double, single = PyKinMLCalculator(model), PyKinMLCalculator(single_model)
    assert single.get_property("energy", atoms) == pytest.approx(double.get_property("energy", atoms), rel=0, abs=1e-5)
    forces = single.get_property("forces", atoms)
    assert forces.dtype == np.float64
    np.testing.assert_allclose(forces, double.get_property("forces", atoms), rtol=0, atol=1e-5)


def test_loads_a_model_file_and_takes_ase_settings(model: Model, tmp_path: Path):
    save_model(tmp_path / "model.safetensors", *model)
    atoms = molecule("H2CO")
    calculator = PyKinMLCalculator(str(tmp_path / "model.safetensors"), directory=str(tmp_path))
    assert calculator.directory == str(tmp_path)
    assert calculator.get_property("energy", atoms) == PyKinMLCalculator(model).get_property("energy", atoms)


def test_refuses_what_the_model_cannot_predict(model: Model):
    calculator = PyKinMLCalculator(model)
    with pytest.raises(ModelError, match=r"the structure \(H3N\) must be of the model's elements, C, H, O, got N"):
        calculator.get_property("energy", molecule("NH3"))
    water = molecule("H2O")
    water.calc = calculator
    water.get_potential_energy()
    water.cell, water.pbc = [9, 9, 9], True
    for _ in range(2):  # nor is the energy of before given out
        with pytest.raises(ModelError, match="must be a molecule in the gas phase"):
            water.get_potential_energy()
    water.pbc = False
    water.positions[1] = water.positions[0]
    with pytest.raises(DataError, match="atoms 0 and 1 in one place"):
        water.get_forces()
    with pytest.raises(DataError, match="calculate needs a structure"):
        PyKinMLCalculator(model).calculate()
