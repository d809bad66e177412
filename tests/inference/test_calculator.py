"""The ASE calculator: forces are -dE/dx, dynamics keeps energy, changes are seen, what it cannot do is refused."""

from __future__ import annotations

from functools import partial
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
from pykinml_func.inference import molecule as module
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.predictor import Predictor
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import member_energies_and_forces, stack_members
from pykinml_func.potential.forces import energy_and_forces
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.model_file import load_ensemble, save_ensemble, save_model
from pykinml_func.types import Ensemble, Params

Model = tuple[ModelConfig, Params]

TOLERANCE = 1e-10
"""eV and eV/Å in float64"""


@pytest.fixture(params=[False, True], ids=["plain", "recorded"])
def recorded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With steps that are not recorded, and with steps that are from their first call."""
    if request.param:
        monkeypatch.setattr(module, "RecordedStep", partial(RecordedStep, eager_calls=0))
    return bool(request.param)


def by_the_functions(model: Model, atoms: Atoms) -> tuple[float, np.ndarray]:
    """What `energy_and_forces` says."""
    species = torch.tensor([model[0].aev.elements.index(symbol) for symbol in atoms.symbols])
    energy, forces = energy_and_forces(*model, species, torch.from_numpy(atoms.positions))
    return energy.item(), forces.numpy()


@pytest.mark.parametrize("name", ["model", "chain_model", "delta_model"])
def test_equals_the_functions_and_the_predictor(
    request: pytest.FixtureRequest, molecules: list[Atoms], name: str, recorded: bool
):
    """At the highest of several levels; the difference where no low level is given."""
    model = request.getfixturevalue(name)
    molecules = molecules[:2] if recorded else molecules  # to record one takes a second
    calculator = PyKinMLCalculator(model)
    for atoms, prediction in zip(molecules, Predictor(*model).predict(molecules), strict=True):
        atoms.calc = calculator
        energy, forces = by_the_functions(model, atoms)
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=0, abs=TOLERANCE)
        assert atoms.get_potential_energy() == pytest.approx(prediction.energy, rel=0, abs=TOLERANCE)
        assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(atoms.get_forces(), prediction.forces, rtol=0, atol=TOLERANCE)


def test_a_low_level_is_added(delta_model: Model, molecules: list[Atoms], low_level: LennardJones, recorded: bool):
    """As the predictor and as ASE add it, again and again, whether energy or forces are asked for first."""
    molecules = molecules[:1] if recorded else molecules
    calculator = PyKinMLCalculator(delta_model, low_level=low_level)
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


def test_a_molecule_is_recorded_once_it_comes_often(model: Model):
    """After 40 calls, as dynamics makes them; another molecule in between is one of its own."""
    calculator, generator = PyKinMLCalculator(model), np.random.default_rng(6)
    often, seldom = molecule("CH3OH")[[5, 0, 2, 1, 4, 3]], molecule("H2O")
    for call in range(44):
        for atoms in (often, seldom) if call % 10 == 0 else (often,):
            atoms.positions += generator.normal(0, 0.02, atoms.positions.shape)
            calculator.calculate(atoms)
            energy, forces = by_the_functions(model, atoms)
            assert calculator.results["energy"] == pytest.approx(energy, rel=0, abs=TOLERANCE)
            np.testing.assert_allclose(calculator.results["forces"], forces, rtol=0, atol=TOLERANCE)
        counts = [molecule.step.shapes for molecule in calculator._molecules.values()]
        assert sorted(counts) == [0, int(call >= 40)]


def test_molecules_that_do_not_come_again_are_forgotten(model: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pykinml_func.inference.calculator._MOST_MOLECULES", 3)
    calculator, often = PyKinMLCalculator(model), molecule("CH3OH")
    calculator.calculate(often)
    (kept,) = calculator._molecules.values()
    for name in ("H2O", "CH4", "CO", "H2CO", "C2H2"):
        for atoms in (molecule(name), often):
            calculator.calculate(atoms)
            assert calculator.results["energy"] == pytest.approx(by_the_functions(model, atoms)[0], abs=TOLERANCE)
        assert len(calculator._molecules) <= 3
        assert kept in calculator._molecules.values()


@pytest.fixture(scope="session")
def ensemble(model: Model) -> list[Model]:
    """Four members that differ in networks and self energies."""
    config, params = model
    members = []
    for seed in range(4):
        networks = init_params(config, torch.Generator().manual_seed(seed)).networks
        members.append((config, Params(networks, params.self_energies + 0.1 * seed)))
    return members


def test_several_models_give_their_mean_and_their_spread(ensemble: list[Model], molecules: list[Atoms], recorded: bool):
    molecules = molecules[:2] if recorded else molecules
    calculator = PyKinMLCalculator(ensemble)
    for atoms in molecules:
        energies, forces = map(np.array, zip(*(by_the_functions(member, atoms) for member in ensemble), strict=True))
        calculator.calculate(atoms)
        found = calculator.results
        mean, spread = energies.mean(), np.sqrt(((energies - energies.mean()) ** 2).sum() / 3)
        assert found["energy"] == found["free_energy"] == pytest.approx(mean, rel=0, abs=TOLERANCE)
        np.testing.assert_allclose(found["all_energies"], energies, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found["all_forces"], forces, rtol=0, atol=TOLERANCE)
        assert found["energy_std"] == pytest.approx(spread, rel=0, abs=TOLERANCE)
        assert spread > 0.1
        np.testing.assert_allclose(found["forces"], forces.mean(axis=0), rtol=0, atol=TOLERANCE)
        spread_of_forces = np.sqrt(((forces - forces.mean(axis=0)) ** 2).sum(axis=0) / 3)
        np.testing.assert_allclose(found["forces_std"], spread_of_forces, rtol=0, atol=TOLERANCE)


def test_files_of_several_members_are_one_ensemble(ensemble: list[Model], tmp_path: Path):
    config = ensemble[0][0]
    save_ensemble(tmp_path / "two.safetensors", Ensemble(config, stack_members([each[1] for each in ensemble[:2]])))
    save_model(tmp_path / "one.safetensors", *ensemble[2])
    atoms = molecule("H2CO")
    expected = PyKinMLCalculator(ensemble)
    expected.calculate(atoms)
    mixed = [tmp_path / "two.safetensors", str(tmp_path / "one.safetensors"), ensemble[3]]
    for models in (mixed, [load_ensemble(mixed[0]), *mixed[1:]]):
        calculator = PyKinMLCalculator(models)
        calculator.calculate(atoms)
        assert calculator.members.self_energies.shape == (4, 1, 3)
        assert calculator.results.keys() == expected.results.keys()
        for name, value in expected.results.items():
            np.testing.assert_array_equal(calculator.results[name], value)


def test_one_model_has_no_spread(model: Model, ensemble: list[Model], tmp_path: Path):
    atoms = molecule("H2CO")
    save_model(tmp_path / "one.safetensors", *ensemble[0])
    save_model(tmp_path / "other.safetensors", *ensemble[1])
    for one in (model, [model]):
        calculator = PyKinMLCalculator(one)
        assert calculator.get_property("energy", atoms) == pytest.approx(by_the_functions(model, atoms)[0], abs=1e-10)
        found = calculator.results
        assert set(found) == {"energy", "free_energy", "forces", "all_energies", "all_forces"}
        assert found["all_energies"].tolist() == [found["energy"]]
        np.testing.assert_array_equal(found["all_forces"], found["forces"][None])
    pair = PyKinMLCalculator([tmp_path / "one.safetensors", str(tmp_path / "other.safetensors")])
    expected = PyKinMLCalculator(ensemble[:2])
    assert pair.get_property("energy", atoms) == expected.get_property("energy", atoms)
    np.testing.assert_array_equal(pair.results["forces_std"], expected.results["forces_std"])


def test_a_low_level_moves_the_mean_of_differences_and_not_their_spread(delta_model: Model, low_level: LennardJones):
    config, params = delta_model
    other = config, params._replace(networks=init_params(config, torch.Generator().manual_seed(8)).networks)
    atoms = molecule("CH4")
    total, difference = (
        PyKinMLCalculator([delta_model, other], low_level=low_level),
        PyKinMLCalculator([delta_model, other]),
    )
    total.calculate(atoms)
    difference.calculate(atoms)
    added = total.results["forces"] - difference.results["forces"]
    np.testing.assert_allclose(added, low_level.get_property("forces", atoms), rtol=0, atol=TOLERANCE)
    for results in (total.results, difference.results):
        assert results["all_energies"].mean() == pytest.approx(results["energy"], rel=0, abs=TOLERANCE)
        np.testing.assert_allclose(results["all_forces"].mean(axis=0), results["forces"], rtol=0, atol=TOLERANCE)
    for name in ("energy_std", "forces_std"):
        np.testing.assert_array_equal(total.results[name], difference.results[name])


def test_models_that_cannot_be_one_ensemble_are_refused(model: Model, chain_model: Model):
    with pytest.raises(ModelError, match="at least one model, got an empty list"):
        PyKinMLCalculator([])
    with pytest.raises(ModelError, match="number 2 differs from the first in fidelities; leave it out"):
        PyKinMLCalculator([model, chain_model])
    config, params = model
    steeper = config.model_copy(
        update={"aev": config.aev.model_copy(update={"beta": 1.0}), "activations": ("tanh",) * 3}
    )
    with pytest.raises(ModelError, match="number 3 differs from the first in activations, beta; leave it out"):
        PyKinMLCalculator([model, model, (steeper, params)])


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
        return member_energies_and_forces(*arguments)

    monkeypatch.setattr(module, "member_energies_and_forces", counted)
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


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.usefixtures("recorded")
def test_float32_networks_keep_float64_self_energies(model: Model, single_model: Model, members: int):
    atoms = molecule("CH3CH2OH")
    of_members = Ensemble(single_model[0], stack_members([single_model[1]] * members))
    double, single = PyKinMLCalculator(model), PyKinMLCalculator(of_members)
    assert single.get_property("energy", atoms) == pytest.approx(double.get_property("energy", atoms), rel=0, abs=1e-5)
    forces = single.get_property("forces", atoms)
    assert forces.dtype == np.float64
    np.testing.assert_allclose(forces, double.get_property("forces", atoms), rtol=0, atol=1e-5)


def test_float32_networks_see_a_molecule_that_is_far_away(single_model: Model):
    """At 1e7 Å, where numbers of float32 are 1 Å apart."""
    near, calculator = molecule("CH3CH2OH"), PyKinMLCalculator(single_model)
    expected = calculator.get_property("forces", near)
    near.positions += 1e7
    np.testing.assert_allclose(calculator.get_property("forces", near), expected, rtol=0, atol=1e-5)


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
    with pytest.raises(DataError, match="the calculator needs a structure"):
        PyKinMLCalculator(model).calculate()
