"""What ASE, and all that is built on it, expects of a calculator."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes, all_properties
from ase.calculators.fd import calculate_numerical_forces
from ase.db import connect
from ase.mep import NEB

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ConfigError, ModelError
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.molecule import Molecule
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.types import Ensemble, Params

Model = tuple[ModelConfig, Params]


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The positions of each evaluation so far."""
    seen: list[np.ndarray] = []
    evaluate = Molecule.evaluate

    def counted(self: Molecule, positions: np.ndarray) -> Any:
        seen.append(positions.copy())
        return evaluate(self, positions)

    monkeypatch.setattr(Molecule, "evaluate", counted)
    return seen


@pytest.fixture
def atoms(model: Model) -> Atoms:
    """Ethanol, bent, with a calculator of two members."""
    bent = molecule("CH3CH2OH")
    bent.positions += np.random.default_rng(3).normal(0, 0.05, (9, 3))
    config, params = model
    other = params._replace(self_energies=params.self_energies + 0.1)
    bent.calc = PyKinMLCalculator(Ensemble(config, stack_members([params, other])))
    return bent


def test_properties_that_it_has_not_are_refused(atoms: Atoms):
    missing = set(all_properties) - {"energy", "free_energy", "forces"}
    for name in (*missing, "energy_std", "hessian", "no such"):
        with pytest.raises(PropertyNotImplementedError):
            atoms.calc.get_property(name, atoms)
    methods = "get_stress", "get_charges", "get_magnetic_moment", "get_magnetic_moments", "get_dipole_moment"
    for method in (*methods, "get_potential_energies"):
        with pytest.raises(PropertyNotImplementedError):
            getattr(atoms, method)()


def test_one_evaluation_gives_all_and_is_kept(atoms: Atoms, evaluations: list[np.ndarray]):
    assert atoms.calc.get_property("energy", atoms, allow_calculation=False) is None
    assert atoms.calc.calculation_required(atoms, ["energy"])
    for _ in range(2):
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        assert atoms.get_potential_energy(force_consistent=True) == energy
    assert not atoms.calc.calculation_required(atoms, ["energy", "forces", "free_energy"])
    assert (type(energy), forces.shape, forces.dtype) == (float, (9, 3), np.float64)
    assert len(evaluations) == 1


CHANGES: dict[str, Callable[[Atoms], Any]] = {
    "positions": lambda atoms: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 1e-9),
    "numbers": lambda atoms: atoms.numbers.__setitem__(8, 6),
    "cell": lambda atoms: atoms.set_cell([20, 20, 20]),
    "pbc": lambda atoms: atoms.set_pbc(True),  # without a cell it is a molecule still
    "atoms": lambda atoms: atoms.pop(8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_is_evaluated_anew_right_after_a_change(model: Model, atoms: Atoms, evaluations: list[np.ndarray], change: str):
    before = atoms.get_potential_energy(), atoms.get_forces()
    CHANGES[change](atoms)
    assert atoms.calc.calculation_required(atoms, ["energy"])
    after = atoms.get_potential_energy(), atoms.get_forces()
    assert len(evaluations) == 2
    if change in ("cell", "pbc"):
        assert after[0] == before[0]
    else:
        assert after[0] != before[0]
    fresh = PyKinMLCalculator(model)
    np.testing.assert_allclose(after[1], fresh.get_forces(atoms), rtol=0, atol=1e-10)


def test_what_the_model_does_not_see_changes_nothing(atoms: Atoms, evaluations: list[np.ndarray]):
    energy = atoms.get_potential_energy()
    atoms.set_initial_charges([0.1] * 9)
    atoms.set_initial_magnetic_moments([1.0] * 9)
    atoms.set_masses([2.0] * 9)
    atoms.info["name"] = "ethanol"
    assert atoms.get_potential_energy() == energy
    assert len(evaluations) == 1


def test_calculate_may_be_called_as_ase_calls_it(atoms: Atoms):
    calculator = atoms.calc
    calls: list[tuple[Any, ...]] = [(atoms,), (atoms, ["energy"], all_changes), (atoms, ["forces"], ["positions"])]
    for arguments in calls:
        calculator.reset()
        assert (calculator.atoms, calculator.results) == (None, {})
        calculator.calculate(*arguments)
        assert calculator.results["energy"] == atoms.get_potential_energy()
        assert calculator.results["forces"].shape == (9, 3)
    calculator.calculate(properties=["energy"])  # the structure of before
    assert calculator.results["energy"] == atoms.get_potential_energy()


def test_atoms_are_left_as_they_are(atoms: Atoms):
    atoms.info["name"] = "ethanol"
    atoms.positions.flags.writeable = False
    before, keys = atoms.copy(), set(atoms.arrays)
    atoms.get_forces()
    atoms.calc.get_hessian(atoms)
    assert atoms == before
    assert (set(atoms.arrays), atoms.info) == (keys, before.info)
    assert atoms.calc.atoms is not atoms
    assert not np.shares_memory(atoms.calc.atoms.positions, atoms.positions)


def test_what_is_given_out_can_be_written_over(atoms: Atoms):
    """Nor does a later evaluation change the results of an earlier one."""
    forces = atoms.get_forces()
    expected = forces.copy()
    forces += 1
    np.testing.assert_array_equal(atoms.get_forces(), expected)
    results = atoms.calc.results
    kept = copy.deepcopy(results)
    atoms.positions[0] += 0.1
    atoms.get_forces()
    for name, value in kept.items():
        np.testing.assert_array_equal(results[name], value)


@pytest.mark.parametrize("members", [1, 2])
def test_results_share_no_memory(model: Model, members: int):
    config, params = model
    calculator = PyKinMLCalculator(Ensemble(config, stack_members([params] * members)))
    calculator.calculate(molecule("CH4"))
    arrays = [value for value in calculator.results.values() if isinstance(value, np.ndarray)]
    shared = [(i, j) for i, one in enumerate(arrays) for j in range(i) if np.shares_memory(one, arrays[j])]
    assert len(arrays) >= 3
    assert not shared


def test_forces_are_the_numerical_ones(atoms: Atoms):
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), rtol=0, atol=1e-6)


def test_the_order_of_atoms_changes_nothing_else(atoms: Atoms):
    energy, forces, per_member = atoms.get_potential_energy(), atoms.get_forces(), atoms.calc.results["all_forces"]
    hessian = atoms.calc.get_hessian().reshape(9, 3, 9, 3)
    order = np.random.default_rng(1).permutation(9)
    shuffled = atoms[order]
    shuffled.calc = atoms.calc
    assert shuffled.get_potential_energy() == pytest.approx(energy, rel=0, abs=1e-9)
    np.testing.assert_allclose(shuffled.get_forces(), forces[order], rtol=0, atol=1e-10)
    np.testing.assert_allclose(shuffled.calc.results["all_forces"], per_member[:, order], rtol=0, atol=1e-10)
    found = shuffled.calc.get_hessian().reshape(9, 3, 9, 3)
    np.testing.assert_allclose(found, hessian[order][:, :, order], rtol=0, atol=1e-9)


def test_nothing_is_left_of_a_calculation_that_failed(atoms: Atoms):
    calculator = atoms.calc
    calculator.calculate(atoms)
    crystal = atoms.copy()
    crystal.cell, crystal.pbc = [9, 9, 9], True
    crystal.calc = calculator
    for attempt in (calculator.calculate, calculator.get_forces, calculator.calculate):
        with pytest.raises(ModelError, match="must be a molecule in the gas phase"):
            attempt(crystal)
        with pytest.raises(ModelError, match="must be a molecule in the gas phase"):
            crystal.get_potential_energy()
    crystal.pbc = False
    assert crystal.get_potential_energy() == atoms.get_potential_energy()


def test_parameters_are_set_and_told(atoms: Atoms):
    calculator = atoms.calc
    energy = atoms.get_potential_energy()
    assert calculator.todict() == {}
    assert calculator.set(extrapolation_limit=1.0) == {}
    assert calculator.results["energy"] == energy
    assert calculator.set(extrapolation_limit=2.0) == {"extrapolation_limit": 2.0}
    assert calculator.results == {}
    assert calculator.todict() == {"extrapolation_limit": 2.0}
    assert atoms.get_potential_energy() == energy
    for unknown in ({"on_extrapolations": "stop"}, {"parameters": "file"}):
        with pytest.raises(ConfigError, match=f"on_extrapolation, extrapolation_limit, got {next(iter(unknown))}"):
            calculator.set(**unknown)


def test_settings_of_ase_are_taken_and_others_refused(model: Model):
    water = molecule("H2O")
    calculator = PyKinMLCalculator(model, atoms=water, label="water", directory="somewhere")
    assert water.calc is calculator
    assert (calculator.label, calculator.name) == ("somewhere/water", "pykinmlcalculator")
    with pytest.raises(ConfigError, match="got lowlevel; leave it out"):
        PyKinMLCalculator(model, lowlevel=calculator)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_is_a_calculator_of_its_own(atoms: Atoms, duplicate: Callable[[Any], Any]):
    original, forces = atoms.calc, atoms.get_forces()
    for _ in range(45):  # recorded by then
        original.calculate(atoms)
    twin = duplicate(original)
    np.testing.assert_array_equal(twin.results["forces"], forces)
    twin.reset()
    np.testing.assert_allclose(twin.get_forces(atoms), forces, rtol=0, atol=1e-12)
    np.testing.assert_allclose(twin.get_hessian(), original.get_hessian(), rtol=0, atol=1e-10)
    twin.calculate(molecule("H2O"))
    np.testing.assert_array_equal(original.results["forces"], forces)
    assert len(original.atoms) == 9
    assert atoms.get_potential_energy() == original.results["energy"]


def test_images_of_a_band_may_share_a_calculator(atoms: Atoms):
    calculator = atoms.calc

    def band(shared: bool) -> NEB:
        first, last = atoms.copy(), atoms.copy()
        last.rattle(0.1, seed=5)
        images = [first, *(first.copy() for _ in range(3)), last]
        for image in images:
            image.calc = calculator if shared else copy.deepcopy(calculator)
        found = NEB(images, method="improvedtangent", allow_shared_calculator=shared)
        found.interpolate()
        return found

    one, many = band(True), band(False)
    np.testing.assert_allclose(one.get_forces(), many.get_forces(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(one.energies[1:-1], many.energies[1:-1], rtol=0, atol=1e-9)
    assert np.ptp(one.energies[1:-1]) > 1e-4


@pytest.mark.parametrize("name", ["frames.traj", "frames.extxyz", "frames.json", "frames.db"])
def test_writers_of_ase_keep_energy_and_forces(atoms: Atoms, tmp_path: Path, name: str):
    """And pass over the other results."""
    forces = atoms.get_forces()
    ase.io.write(tmp_path / name, [atoms, atoms])
    for found in ase.io.read(tmp_path / name, index=":"):
        assert found.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-7)
        np.testing.assert_allclose(found.get_forces(), forces, rtol=0, atol=1e-7)
        assert not found.info.keys() & atoms.calc.results.keys()


def test_a_database_of_ase_takes_it(atoms: Atoms, tmp_path: Path):
    energy = atoms.get_potential_energy()
    with connect(tmp_path / "structures.db") as database:
        database.write(atoms)
        row = database.get(1)
    assert (row.energy, row.calculator) == (energy, "pykinmlcalculator")


def test_results_are_ase_properties_of_the_atoms(atoms: Atoms):
    found = atoms.get_properties(["energy", "forces"])
    assert found["energy"] == atoms.get_potential_energy()
    np.testing.assert_array_equal(found["forces"], atoms.get_forces())
    assert "energy_std" in atoms.calc.results
    assert set(atoms.calc.export_properties()) == {"energy", "free_energy", "forces", "natoms"}
