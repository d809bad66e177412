"""A structure beyond what the model was trained on: the number, and the calculator that warns or stops."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ConfigError, ExtrapolationError, ExtrapolationWarning
from pykinml_func.inference import molecule as module
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.predictor import Predictor
from pykinml_func.potential.aev import aevs
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.model_file import save_ensemble
from pykinml_func.types import Calibration, Domain, Ensemble, Params

Model = tuple[ModelConfig, Params]

SCALES = 1.7, 0.6
LIMIT = 0.3
"""eV: the largest calibrated standard deviation over the root of the number of atoms in validation"""


@pytest.fixture(scope="session")
def domain(model: Model) -> Domain:
    """Of three directions; oxygen has a wider ellipsoid."""
    generator, length = torch.Generator().manual_seed(9), model[0].aev.length
    mean, whitener = torch.rand(3, length, generator=generator), torch.randn(3, length, 3, generator=generator)
    return Domain(mean, whitener, torch.tensor([5.0, 4.0, 40.0]))


@pytest.fixture(scope="session")
def ensemble(model: Model, domain: Domain) -> Ensemble:
    return ensemble_of(model, domain=domain, calibration=calibration(*SCALES, LIMIT))


def ensemble_of(model: Model, n_members: int = 3, **known: Any) -> Ensemble:
    config, params = model
    drawn = [init_params(config, torch.Generator().manual_seed(seed)).networks for seed in range(n_members)]
    return Ensemble(config, stack_members([params._replace(networks=networks) for networks in drawn]), **known)


def calibration(energy: float, force: float, limit: float) -> Calibration:
    return Calibration(*(torch.tensor(value, dtype=torch.float64) for value in ([energy], [force], limit)))


def spread_of(members: np.ndarray, n_atoms: int) -> float:
    return SCALES[0] * members.std(ddof=1) / np.sqrt(n_atoms) / LIMIT


def distance_of(model: Model, domain: Domain, atoms: Atoms) -> float:
    """Atom by atom in numpy."""
    config, species = model[0].aev, [model[0].aev.elements.index(symbol) for symbol in atoms.symbols]
    found = aevs(config, torch.tensor(species), torch.from_numpy(atoms.positions)).numpy()
    white = [(aev - domain.mean[s].numpy()) @ domain.whitener[s].numpy() for aev, s in zip(found, species, strict=True)]
    return max(np.linalg.norm(row) / domain.farthest[s].item() for row, s in zip(white, species, strict=True))


@pytest.mark.usefixtures("either_aevs")
@pytest.mark.parametrize("eager_calls", [40, 0])
def test_is_the_larger_of_spread_and_distance(
    model: Model, ensemble: Ensemble, molecules: list[Atoms], monkeypatch: pytest.MonkeyPatch, eager_calls: int
):
    monkeypatch.setattr(module, "RecordedStep", partial(RecordedStep, eager_calls=eager_calls))
    assert ensemble.domain is not None
    calculator, both = PyKinMLCalculator(ensemble), set()
    alone = PyKinMLCalculator(Ensemble(ensemble.model_config, ensemble.members, ensemble.calibration))
    for atoms in molecules[:2] if eager_calls == 0 else molecules:
        calculator.calculate(atoms)
        alone.calculate(atoms)
        spread = spread_of(calculator.results["all_energies"], len(atoms))
        distance = distance_of(model, ensemble.domain, atoms)
        both.add(spread > distance)
        assert calculator.results["extrapolation"] == pytest.approx(max(spread, distance), rel=1e-4)
        assert alone.results["extrapolation"] == pytest.approx(spread, rel=1e-8)
    assert eager_calls == 0 or both == {True, False}


def test_standard_deviations_are_calibrated(ensemble: Ensemble):
    atoms, plain = molecule("CH3OH"), PyKinMLCalculator(ensemble._replace(calibration=None))
    calculator = PyKinMLCalculator(ensemble)
    for each in (calculator, plain):
        each.calculate(atoms)
    energies, forces = calculator.results["all_energies"], calculator.results["all_forces"]
    assert plain.results["energy_std"] == pytest.approx(energies.std(ddof=1))
    assert calculator.results["energy_std"] == pytest.approx(SCALES[0] * energies.std(ddof=1))
    np.testing.assert_allclose(plain.results["forces_std"], forces.std(axis=0, ddof=1))
    np.testing.assert_allclose(calculator.results["forces_std"], SCALES[1] * forces.std(axis=0, ddof=1))


def test_what_is_not_known_is_left_out(model: Model, domain: Domain):
    atoms, nan = molecule("CH3OH"), float("nan")
    distance = distance_of(model, domain, atoms)

    def results(known: Any) -> dict[str, Any]:
        calculator = PyKinMLCalculator(known)
        calculator.calculate(atoms)
        return dict(calculator.results)

    unknown = calibration(nan, nan, nan)
    for nothing in (model, ensemble_of(model), ensemble_of(model, calibration=unknown)):
        assert "extrapolation" not in results(nothing)
    assert results(ensemble_of(model, calibration=unknown))["energy_std"] == results(ensemble_of(model))["energy_std"]
    one_member = ensemble_of(model, 1, domain=domain, calibration=unknown)
    for distant in (one_member, ensemble_of(model, domain=domain)):
        assert results(distant)["extrapolation"] == pytest.approx(distance, rel=1e-4)


def test_several_files_keep_the_domain_that_they_share(ensemble: Ensemble, model: Model, tmp_path: Path):
    assert ensemble.domain is not None
    drawn = [init_params(model[0], torch.Generator().manual_seed(seed)).networks for seed in (7, 8)]
    others = stack_members([model[1]._replace(networks=networks) for networks in drawn])
    save_ensemble(tmp_path / "a.safetensors", ensemble)
    save_ensemble(tmp_path / "b.safetensors", ensemble._replace(members=others))
    atoms = molecule("CH3CH2OH")
    distance = distance_of(model, ensemble.domain, atoms)
    one = PyKinMLCalculator([tmp_path / "a.safetensors"])
    two = PyKinMLCalculator([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    for calculator in (one, two):
        calculator.calculate(atoms)
    assert one.results["extrapolation"] > distance
    assert two.results["extrapolation"] == pytest.approx(distance, rel=1e-4)
    spread = two.results["all_energies"].std(ddof=1)
    assert two.results["energy_std"] == pytest.approx(spread)  # the calibration of one is not that of both
    elsewhere = Ensemble(model[0], others, domain=ensemble.domain._replace(farthest=2 * ensemble.domain.farthest))
    with pytest.raises(ConfigError, match="neither a domain nor the calibration of an ensemble"):
        PyKinMLCalculator([ensemble, elsewhere], on_extrapolation="stop")


def test_warns_or_stops_above_the_limit(ensemble: Ensemble):
    atoms = molecule("CH3OH")
    atoms.calc = PyKinMLCalculator(ensemble)
    energy, number = atoms.get_potential_energy(), atoms.calc.results["extrapolation"]
    numbers = rf"\(CH4O\) must lie within {0.9 * number:g} of .*, got {number:.3g} \(spread .*, distance .*\); train"
    for action in ("ignore", "warn", "stop"):
        atoms.calc = PyKinMLCalculator(ensemble, on_extrapolation=action, extrapolation_limit=1.1 * number)
        assert atoms.get_potential_energy() == energy
    atoms.calc = PyKinMLCalculator(ensemble, on_extrapolation="warn", extrapolation_limit=0.9 * number)
    with pytest.warns(ExtrapolationWarning, match=numbers):
        assert atoms.get_potential_energy() == energy
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_forces()  # one evaluation, one warning
    atoms.calc.set(on_extrapolation="stop")
    for _ in range(2):  # nor is the energy given out when it is asked for again
        with pytest.raises(ExtrapolationError, match=numbers):
            atoms.get_potential_energy()
    atoms.calc.set(extrapolation_limit=1.1 * number)
    assert atoms.get_potential_energy() == energy


def test_the_limit_itself_is_within(ensemble: Ensemble):
    atoms, calculator = molecule("CH3OH"), PyKinMLCalculator(ensemble)
    calculator.calculate(atoms)
    number = calculator.results["extrapolation"]
    calculator.set(on_extrapolation="stop", extrapolation_limit=number)
    calculator.calculate(atoms)
    calculator.set(extrapolation_limit=np.nextafter(number, 0))
    with pytest.raises(ExtrapolationError):
        calculator.calculate(atoms)


def test_agrees_with_the_predictor(ensemble: Ensemble, molecules: list[Atoms]):
    calculator = PyKinMLCalculator(ensemble)
    for atoms, expected in zip(molecules, Predictor(ensemble).predict(molecules), strict=True):
        calculator.calculate(atoms)
        found = calculator.results
        assert found["extrapolation"] == pytest.approx(expected.extrapolation, rel=1e-5)
        assert found["energy_std"] == pytest.approx(expected.energy_std)
        np.testing.assert_allclose(found["forces_std"], expected.forces_std, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found["all_energies"], expected.member_energies[:, -1], rtol=0, atol=1e-10)
        np.testing.assert_allclose(found["all_forces"], expected.member_forces[:, -1], rtol=0, atol=1e-10)


def test_an_element_that_was_never_seen_is_infinitely_far(model: Model, domain: Domain):
    known = ensemble_of(model, 1, domain=domain._replace(farthest=torch.tensor([5.0, 4.0, 0.0])))
    calculator = PyKinMLCalculator(known, on_extrapolation="stop", extrapolation_limit=1e9)
    calculator.calculate(molecule("CH4"))
    with pytest.raises(ExtrapolationError, match="got inf"):
        calculator.calculate(molecule("H2O"))


def test_the_low_level_changes_nothing(delta_model: Model, domain: Domain, low_level: LennardJones):
    known = ensemble_of(delta_model, domain=domain, calibration=calibration(*SCALES, LIMIT))
    plain, total = PyKinMLCalculator(known), PyKinMLCalculator(known, low_level=low_level)
    for each in (plain, total):
        each.calculate(molecule("H2CO"))
    assert total.results["extrapolation"] == plain.results["extrapolation"]


def test_settings_that_cannot_be_are_refused(model: Model, ensemble: Ensemble):
    others = [Ensemble(ensemble.model_config, ensemble.members)]
    for action in ("warn", "stop"):
        for knows_nothing in (model, [model, *others], Ensemble(ensemble.model_config, ensemble.members)):
            with pytest.raises(ConfigError, match=f"on_extrapolation = {action} needs a model that knows"):
                PyKinMLCalculator(knows_nothing, on_extrapolation=action)
    with pytest.raises(ConfigError, match="on_extrapolation must be one of ignore, warn, stop, got halt"):
        PyKinMLCalculator(ensemble, on_extrapolation="halt")
    with pytest.raises(ConfigError, match="extrapolation_limit must be above 0, got -1"):
        PyKinMLCalculator(ensemble, extrapolation_limit=-1)
    calculator = PyKinMLCalculator(model)
    with pytest.raises(ConfigError, match="needs a model that knows"):
        calculator.set(on_extrapolation="stop")
    assert calculator.parameters["on_extrapolation"] == "ignore"
