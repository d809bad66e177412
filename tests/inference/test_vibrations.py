"""Vibrations: against ASE's finite differences, springs that are known, and the symmetries of a molecule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.units import _amu, _c, _e, _hbar, invcm, m
from ase.vibrations import Vibrations as DisplacedVibrations
from bound_models import bound_model, minimum, spread_known, upside_down
from torch.utils._pytree import tree_map

from pykinml_func.errors import ConfigError, DataError, ModelError
from pykinml_func.inference import vibrations as module
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.vibrations import Vibrations, vibrations
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training.model_file import save_ensemble, save_model
from pykinml_func.types import Ensemble, Params

TOLERANCE = 1e-6  # cm^-1: rounding, also of relaxed positions
AT_REST = 1.0  # cm^-1 that the whole molecule may have at a stationary point

SHAPES = {"H2CO": ("nonlinear", 6), "H2O": ("nonlinear", 3), "CH4": ("nonlinear", 9)}
SHAPES |= {"C2H2": ("linear", 7), "CO": ("linear", 1), "O": ("monatomic", 0)}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_and_number_of_vibrations(name: str):
    found = vibrations(bound_model(), minimum(name))
    n = len(found.atoms)
    assert (found.geometry, len(found.wavenumbers)) == SHAPES[name]
    assert len(found.wavenumbers) + len(found.whole_wavenumbers) == 3 * n
    assert found.modes.shape == (len(found.wavenumbers), n, 3)
    assert found.n_imaginary == 0 and found.largest_force < 1e-6
    assert np.abs(found.whole_wavenumbers).max() < AT_REST
    every = found.data.get_frequencies()
    assert np.abs(every[: len(found.whole_wavenumbers)]).max() < AT_REST
    np.testing.assert_allclose(every[len(found.whole_wavenumbers) :].real, found.wavenumbers, rtol=0, atol=0.01)


@pytest.mark.parametrize(("aside", "geometry"), [(0.003, "linear"), (0.3, "nonlinear")])
def test_what_is_linear_but_for_rounding_is_linear(aside: float, geometry: str):
    """aside: Å that a hydrogen atom is off the axis; relaxation leaves such."""
    atoms = minimum("C2H2")
    atoms.positions[2, 0] += aside
    found = vibrations(bound_model(), atoms)
    assert found.geometry == geometry
    assert len(found.wavenumbers) == (7 if geometry == "linear" else 6)


@pytest.mark.parametrize("name", ["H2CO", "C2H2", "CH4"])
def test_equals_finite_differences_of_ase(tmp_path: Path, name: str):
    atoms = minimum(name)
    atoms.calc = PyKinMLCalculator(bound_model())
    displaced = DisplacedVibrations(atoms, name=str(tmp_path / "displaced"), delta=0.002)
    displaced.run()
    found = vibrations(bound_model(), atoms)
    expected = displaced.get_frequencies()[-len(found.wavenumbers) :]
    np.testing.assert_allclose(found.wavenumbers, expected.real, rtol=0, atol=1.0)


def test_a_diatomic_is_a_spring():
    """wavenumber = sqrt(k / mu) / (2 pi c), for both isotopes of carbon."""
    atoms, step = minimum("CO"), 1e-3
    calculator = PyKinMLCalculator(bound_model())
    axis = (atoms.positions[1] - atoms.positions[0]) / atoms.get_distance(0, 1)

    def pull(change: float) -> float:
        moved = atoms.copy()
        moved.positions[1] += change * axis
        return float(calculator.get_property("forces", moved)[1] @ axis)

    stiffness = -(pull(step) - pull(-step)) / (2 * step)
    for masses in ([15.999, 12.011], [15.999, 13.003]):
        atoms.set_masses(masses)
        reduced = masses[0] * masses[1] / sum(masses)
        expected = np.sqrt(stiffness * _e / (reduced * _amu)) * 1e10 / (2 * np.pi * _c * 100)
        assert vibrations(bound_model(), atoms).wavenumbers == pytest.approx([expected], abs=0.01)


@pytest.mark.parametrize("name", ["H2CO", "C2H2"])
def test_modes_are_those_of_the_weighted_hessian(name: str):
    found = vibrations(bound_model(), minimum(name))
    masses = found.atoms.get_masses().repeat(3)
    modes = found.modes.reshape(len(found.modes), -1)
    np.testing.assert_allclose(modes * masses @ modes.T, np.eye(len(modes)), rtol=0, atol=1e-10)
    bent = modes @ found.hessians[0].reshape(len(masses), -1)
    squares = (bent * modes).sum(axis=1)
    np.testing.assert_allclose(bent, squares[:, None] * modes * masses, rtol=0, atol=1e-4)
    weights = found.atoms.get_masses()[None, :, None]
    np.testing.assert_allclose((found.modes * weights).sum(axis=1), 0, atol=1e-9)
    turning = np.cross(found.atoms.positions - found.atoms.get_center_of_mass(), found.modes * weights).sum(axis=1)
    np.testing.assert_allclose(turning, 0, atol=1e-9)


def turned(found: Vibrations, atoms: Atoms) -> None:
    """Asserts that a turned, moved and reordered structure has the same wavenumbers."""
    order = np.random.default_rng(1).permutation(len(atoms))
    other = atoms[order]
    other.rotate(40.0, (1, 2, 3))
    other.positions += 20.0
    again = vibrations(bound_model(), other)
    np.testing.assert_allclose(again.wavenumbers, found.wavenumbers, rtol=0, atol=TOLERANCE)
    assert again.largest_force == pytest.approx(found.largest_force, abs=1e-9)


def test_a_structure_that_is_not_at_rest_has_as_many_vibrations():
    """Its rotations are projected out, whatever forces do to them."""
    atoms = minimum("H2CO")
    atoms.positions += np.random.default_rng(2).normal(0, 0.05, (4, 3))
    before = atoms.positions.copy()
    found = vibrations(bound_model(), atoms)
    assert found.largest_force > module.AT_REST and found.steps is None
    assert np.abs(found.whole_wavenumbers).max() > AT_REST
    assert len(found.wavenumbers) == 6
    turned(found, atoms)
    np.testing.assert_array_equal(atoms.positions, before)


def test_relaxes_on_request_and_leaves_its_input():
    atoms = molecule("H2CO")
    before = atoms.positions.copy()
    found = vibrations(bound_model(), atoms, relax=True)
    np.testing.assert_array_equal(atoms.positions, before)
    assert found.steps is not None and found.steps > 1 and found.largest_force < 1e-6
    assert vibrations(bound_model(), atoms, relax=True, fmax=0.01).steps < found.steps
    turned(found, found.atoms)


def test_imaginary_wavenumbers_are_negative_and_come_first():
    held, falling = vibrations(bound_model(), minimum("CO")), vibrations(upside_down(bound_model()), minimum("CO"))
    np.testing.assert_allclose(falling.wavenumbers, -held.wavenumbers, rtol=0, atol=TOLERANCE)
    assert falling.n_imaginary == 1
    every = vibrations(upside_down(bound_model()), minimum("H2CO"))
    assert every.n_imaginary == 6 and (np.diff(every.wavenumbers) > 0).all()


def apart(name: str, distance: float) -> Atoms:
    """A hydrogen atom `distance` Å from a molecule."""
    return molecule(name) + Atoms("H", [(distance, 0, 0)])


def test_fragments_that_are_apart_have_vibrations_of_zero_on_either_side_of_it():
    """Rounding makes no transition state of them: three of H2O and H, one of two atoms; of one molecule, none."""
    found = vibrations(bound_model(), apart("H2O", 15.0), relax=True)
    assert found.largest_force < 1e-6
    assert (found.n_imaginary, found.n_zero) == (0, 3)
    np.testing.assert_allclose(
        np.sort(found.wavenumbers)[3:], vibrations(bound_model(), minimum("H2O")).wavenumbers, rtol=0, atol=0.01
    )
    pair = vibrations(bound_model(), Atoms("H2", [(0, 0, 0), (20, 0, 0)]))
    assert (pair.n_imaginary, pair.n_zero) == (0, 1)
    assert found._replace(wavenumbers=np.array([-1.1, -0.9, 0.9, 1.1])).n_imaginary == 1
    assert found._replace(wavenumbers=np.array([-1.1, -0.9, 0.9, 1.1])).n_zero == 2
    assert vibrations(bound_model(), minimum("H2O")).n_zero == 0


def test_says_how_far_beyond_the_training_data_it_is():
    """The number of the calculator where the Hessian is taken, not where relaxation began."""
    ensemble, start = spread_known(0.3), molecule("H2CO")
    relaxed = vibrations(ensemble, start, relax=True)
    of_start, of_end = (PyKinMLCalculator(ensemble), PyKinMLCalculator(ensemble))
    of_start.calculate(start)
    of_end.calculate(relaxed.atoms)
    assert vibrations(ensemble, start).extrapolation == pytest.approx(of_start.results["extrapolation"], rel=1e-6)
    assert relaxed.extrapolation == pytest.approx(of_end.results["extrapolation"], rel=1e-6)
    assert relaxed.extrapolation != pytest.approx(of_start.results["extrapolation"], rel=1e-3)
    assert np.isnan(vibrations(bound_model(), start).extrapolation)


def test_a_low_level_is_part_of_energies_forces_and_hessians():
    """Of each member, and where it is in single precision."""
    config, low = bound_model(fidelities=(0,))
    low = Params(tree_map(lambda leaf: leaf.float(), low.networks), low.self_energies)
    double = Params(tree_map(torch.Tensor.double, low.networks), low.self_energies)
    models = [bound_model(variant, baseline=0) for variant in range(2)]
    found = vibrations(models, molecule("H2CO"), relax=True, low_level=(config, low))
    calculator = PyKinMLCalculator(models, low_level=PyKinMLCalculator((config, double)))
    calculator.calculate(found.atoms)
    np.testing.assert_allclose(found.energies, calculator.results["all_energies"], rtol=0, atol=1e-9)
    assert np.linalg.norm(calculator.results["forces"], axis=1).max() == pytest.approx(found.largest_force, abs=1e-9)
    assert found.largest_force < 1e-6
    exact = calculator.get_hessian(found.atoms).reshape(found.hessians[0].shape)
    np.testing.assert_allclose(found.data.get_hessian(), exact, rtol=0, atol=1e-10)
    for model, hessian in zip(models, found.hessians, strict=True):
        alone = vibrations(model, found.atoms, low_level=(config, low)).hessians
        np.testing.assert_allclose(hessian, alone[0], rtol=0, atol=1e-10)


def test_members_whose_modes_cross_are_compared_mode_by_mode(monkeypatch: pytest.MonkeyPatch):
    """Springs along the modes of H2CO: two modes change places from one member to the other."""
    base = vibrations(bound_model(), minimum("H2CO"))
    expected = np.array([[900.0, 1200, 1300, 1600, 2800, 2900], [910.0, 1350, 1210, 1580, 2930, 2850]])
    stiffness = (expected * invcm / (_hbar * m / np.sqrt(_e * _amu))) ** 2  # eV/Å²/amu
    bends = base.modes * base.atoms.get_masses()[:, None]
    made = np.einsum("ev,vna,vmb->enamb", stiffness, bends, bends)
    monkeypatch.setattr(module, "member_hessians", lambda *_: torch.from_numpy(made))
    found = vibrations([bound_model(variant) for variant in range(2)], base.atoms)
    order = stiffness.mean(axis=0).argsort()
    np.testing.assert_allclose(found.wavenumbers, np.sqrt((expected**2).mean(axis=0))[order], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.member_wavenumbers, expected[:, order], rtol=0, atol=1e-3)


def test_members_are_asked_where_their_mean_leads():
    models = [bound_model(variant) for variant in range(3)]
    found = vibrations(models, molecule("H2CO"), relax=True)
    alone = [vibrations(model, found.atoms) for model in models]
    assert found.largest_force < 1e-6 and max(each.largest_force for each in alone) > 1e-3
    for member, each in enumerate(alone):
        np.testing.assert_allclose(found.member_wavenumbers[member], each.wavenumbers, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.hessians[member], each.hessians[0], rtol=0, atol=1e-10)
        assert found.energies[member] == pytest.approx(each.energies[0], abs=1e-9)
    mean = found.data.get_hessian()
    np.testing.assert_allclose(mean, np.mean([each.hessians[0] for each in alone], axis=0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.data.get_frequencies()[6:].real, found.wavenumbers, rtol=0, atol=0.01)
    assert np.ptp(found.member_wavenumbers, axis=0).min() > 0.1


def test_an_ensemble_is_its_members(tmp_path: Path):
    """As one object, as one file, and as a list of models."""
    models = [bound_model(variant) for variant in range(3)]
    ensemble = Ensemble(models[0][0], stack_members([params for _, params in models]))
    save_ensemble(tmp_path / "three.safetensors", ensemble)
    expected = vibrations(models, minimum("H2CO"))
    for model in (ensemble, tmp_path / "three.safetensors"):
        found = vibrations(model, minimum("H2CO"))
        np.testing.assert_array_equal(found.energies, expected.energies)
        np.testing.assert_array_equal(found.member_wavenumbers, expected.member_wavenumbers)
        np.testing.assert_array_equal(found.wavenumbers, expected.wavenumbers)


def test_parameters_that_are_trained_are_evaluated_alike():
    config, params = bound_model()
    tracked = tree_map(lambda leaf: leaf.clone().requires_grad_(), params)
    expected = vibrations((config, params), minimum("H2O"))
    found = vibrations((config, tracked), minimum("H2O"), relax=True)
    np.testing.assert_allclose(found.wavenumbers, expected.wavenumbers, rtol=0, atol=1e-3)


def test_energies_and_forces_are_those_of_the_calculator(tmp_path: Path):
    atoms, model = molecule("H2CO")[[3, 0, 2, 1]], bound_model()
    save_model(tmp_path / "model.safetensors", *model)
    found = vibrations(tmp_path / "model.safetensors", atoms)
    atoms.calc = PyKinMLCalculator(model)
    assert found.energies == pytest.approx([atoms.get_potential_energy()], abs=1e-9)
    assert found.largest_force == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max(), abs=1e-9)


def test_a_single_precision_model_loses_nothing():
    """Its weights are rounded, its derivatives are not."""
    config, params = bound_model()
    single = Params(tree_map(lambda leaf: leaf.float(), params.networks), params.self_energies)
    rounded = Params(tree_map(torch.Tensor.double, single.networks), params.self_energies)
    found, expected = (vibrations((config, each), molecule("H2O"), relax=True) for each in (single, rounded))
    np.testing.assert_allclose(found.wavenumbers, expected.wavenumbers, rtol=0, atol=TOLERANCE)


def test_the_highest_level_counts():
    config, params = bound_model(fidelities=(0, 1))
    assert vibrations((config, params), molecule("H2O")).energies == pytest.approx(
        [PyKinMLCalculator((config, params)).get_property("energy", molecule("H2O"))], abs=1e-9
    )


def test_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch):
    fixed, periodic = molecule("H2O"), molecule("H2O", vacuum=5.0, pbc=True)
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(DataError, match=r"\(H2O\) must be free to move, got constraints"):
        vibrations(bound_model(), fixed)
    with pytest.raises(ModelError, match="got a periodic cell"):
        vibrations(bound_model(), periodic)
    with pytest.raises(ModelError, match="of the model's elements, C, H, O, got N"):
        vibrations(bound_model(), molecule("N2"))
    with pytest.raises(ModelError, match="vibrations need a model of an energy, got one of level 1 less level 0"):
        vibrations(bound_model(baseline=0), molecule("H2O"))
    for low_level, got in (
        (bound_model(), "level 1"),
        (bound_model(fidelities=(0,), baseline=5), "a difference of levels"),
    ):
        with pytest.raises(
            ModelError, match=f"low_level must be a model of level 0, got one of {got}; give that level's"
        ):
            vibrations(bound_model(baseline=0), molecule("H2O"), low_level=low_level)
    with pytest.raises(ModelError, match="low_level needs a model of delta learning, got one of level 1 itself"):
        vibrations(bound_model(), molecule("H2O"), low_level=bound_model(fidelities=(0,)))
    with pytest.raises(ConfigError, match="fmax must be above 0 eV/Å, got 0"):
        vibrations(bound_model(), molecule("H2O"), relax=True, fmax=0)
    monkeypatch.setattr(module, "_MOST_STEPS", 2)
    with pytest.raises(DataError, match=r"\(H2O\) must come to rest, with no force above 1e-06 eV/Å, got .* 2 steps"):
        vibrations(bound_model(), molecule("H2O"), relax=True)
