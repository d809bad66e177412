"""Hessians of the calculator, in the form that Sella asks for: against its forces and against the functions."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones

from pykinml_func.config import ModelConfig
from pykinml_func.errors import DataError, ModelError
from pykinml_func.inference import molecule as module
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.hessian import hessian
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.types import Params

Model = tuple[ModelConfig, Params]


@pytest.fixture
def atoms() -> Atoms:
    """Methanol, bent, its atoms in no order."""
    bent = molecule("CH3OH")[[5, 0, 2, 1, 4, 3]]
    bent.positions += np.random.default_rng(2).normal(0, 0.05, (6, 3))
    return bent


@pytest.fixture
def several(model: Model) -> list[Model]:
    config, params = model
    return [model, *((config, params._replace(networks=networks_of(config, seed))) for seed in (1, 2))]


def networks_of(config: ModelConfig, seed: int) -> tuple:
    return init_params(config, torch.Generator().manual_seed(seed)).networks


def by_the_function(model: Model, atoms: Atoms) -> np.ndarray:
    species = torch.tensor([model[0].aev.elements.index(symbol) for symbol in atoms.symbols])
    return hessian(*model, species, torch.from_numpy(atoms.positions)).reshape(2 * [3 * len(atoms)]).numpy()


def differences(calculator: PyKinMLCalculator, atoms: Atoms, step: float = 1e-4) -> np.ndarray:
    """Central differences of the forces."""
    rows = []
    for coordinate in range(3 * len(atoms)):
        forces = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[divmod(coordinate, 3)] += sign * step
            forces.append(calculator.get_forces(moved).ravel())
        rows.append((forces[1] - forces[0]) / (2 * step))
    return np.array(rows)


def test_is_minus_the_derivative_of_the_forces(several: list[Model], atoms: Atoms):
    for models in (several[0], several):
        calculator = PyKinMLCalculator(models)
        found = calculator.get_hessian(atoms)
        assert (found.shape, found.dtype) == ((18, 18), np.float64)
        np.testing.assert_allclose(found, differences(calculator, atoms), rtol=0, atol=1e-6)
        np.testing.assert_allclose(found, found.T, rtol=0, atol=1e-10)


def test_is_the_mean_of_the_members(several: list[Model], atoms: Atoms, monkeypatch: pytest.MonkeyPatch):
    expected = np.mean([by_the_function(each, atoms) for each in several], axis=0)
    np.testing.assert_allclose(PyKinMLCalculator(several).get_hessian(atoms), expected, rtol=0, atol=1e-10)
    monkeypatch.setattr(module, "RecordedStep", partial(RecordedStep, eager_calls=0))
    recorded = PyKinMLCalculator(several)
    for _ in range(2):
        np.testing.assert_allclose(recorded.get_hessian(atoms), expected, rtol=0, atol=1e-10)
        atoms.positions[0] += 0.1
        expected = np.mean([by_the_function(each, atoms) for each in several], axis=0)


def test_of_a_float32_model_is_computed_in_float64(single_model: Model, atoms: Atoms):
    config, params = single_model
    widened = config, Params(tuple(torch.utils._pytree.tree_map(torch.Tensor.double, params.networks)), params[1])
    found = PyKinMLCalculator(single_model).get_hessian(atoms)
    np.testing.assert_allclose(found, by_the_function(widened, atoms), rtol=0, atol=1e-10)


def test_is_that_of_the_last_structure_where_none_is_given(model: Model, atoms: Atoms):
    calculator = PyKinMLCalculator(model)
    with pytest.raises(DataError, match="needs a structure, got none"):
        calculator.get_hessian()
    calculator.calculate(atoms)
    energy, other = calculator.results["energy"], molecule("H2O")
    assert calculator.get_hessian(other).shape == (9, 9)
    np.testing.assert_array_equal(calculator.get_hessian(), calculator.get_hessian(atoms))
    assert calculator.atoms == atoms
    assert calculator.results["energy"] == energy
    assert not calculator.calculation_required(atoms, ["energy", "forces"])


def test_refuses_what_the_model_cannot_describe(model: Model, atoms: Atoms):
    calculator = PyKinMLCalculator(model)
    with pytest.raises(ModelError, match="of the model's elements"):
        calculator.get_hessian(molecule("NH3"))
    atoms.cell, atoms.pbc = [9, 9, 9], True
    with pytest.raises(ModelError, match="must be a molecule in the gas phase"):
        calculator.get_hessian(atoms)


class _Springs(LennardJones):
    """A low level with a Hessian of its own, in the shape that some calculators give."""

    def get_hessian(self, atoms: Atoms) -> np.ndarray:
        return np.eye(3 * len(atoms)).reshape(3 * len(atoms), len(atoms), 3)


def test_a_low_level_adds_its_own_or_is_refused(delta_model: Model, atoms: Atoms, low_level: LennardJones):
    difference = PyKinMLCalculator(delta_model).get_hessian(atoms)
    np.testing.assert_allclose(difference, by_the_function(delta_model, atoms), rtol=0, atol=1e-10)
    total = PyKinMLCalculator(delta_model, low_level=_Springs()).get_hessian(atoms)
    np.testing.assert_allclose(total - difference, np.eye(18), rtol=0, atol=1e-12)
    with pytest.raises(ModelError, match="low level that has get_hessian, got LennardJones; differentiate the forces"):
        PyKinMLCalculator(delta_model, low_level=low_level).get_hessian(atoms)
