"""Delta learning at work: a low level, of a calculator or of results that are there, plus the difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from pykinml_func.config import ModelConfig
from pykinml_func.data.formats.database import write_database
from pykinml_func.errors import ConfigError, DataError, ModelError
from pykinml_func.inference.calculator import PyKinMLCalculator
from pykinml_func.inference.low_level import read_low_level
from pykinml_func.inference.predictor import Prediction, Predictor
from pykinml_func.types import Params, Structures

Model = tuple[ModelConfig, Params]

TOLERANCE = 1e-10
"""eV and eV/Å in float64"""


def results(image: Atoms, calculator: Any) -> dict[str, Any]:
    return {name: calculator.get_property(name, image) for name in ("energy", "forces")}


def attach(images: list[Atoms], calculator: Any) -> None:
    for image in images:
        image.calc = SinglePointCalculator(image, **results(image, calculator))


def assert_sums(
    sums: list[Prediction], differences: list[Prediction], images: list[Atoms], low_level: Any, tolerance: float
) -> None:
    for found, difference, image in zip(sums, differences, images, strict=True):
        low = results(image, low_level)
        assert not found.is_difference and difference.is_difference
        assert abs(low["energy"]) > 0 or len(image) == 1
        assert found.energy == pytest.approx(difference.energy + low["energy"], rel=0, abs=tolerance)
        np.testing.assert_allclose(found.forces, difference.forces + low["forces"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_the_low_level_is_added(
    delta_model: Model, molecules: list[Atoms], low_level: LennardJones, batch_size: int | None
):
    predictor = Predictor(*delta_model)
    differences = predictor.predict(molecules)
    sums = predictor.predict(molecules, batch_size=batch_size, low_level=low_level)
    assert_sums(sums, differences, molecules, low_level, TOLERANCE)


def test_a_model_is_a_low_level(delta_model: Model, chain_model: Model, molecules: list[Atoms]):
    predictor, low_level = Predictor(*delta_model), PyKinMLCalculator(chain_model)
    sums = predictor.predict(molecules, low_level=low_level)
    assert_sums(sums, predictor.predict(molecules), molecules, low_level, TOLERANCE)


def test_results_that_are_attached_are_added(delta_model: Model, molecules: list[Atoms], low_level: LennardJones):
    attach(molecules, low_level)
    predictor = Predictor(*delta_model)
    sums = predictor.predict(molecules, low_level="attached")
    assert_sums(sums, predictor.predict(molecules), molecules, low_level, TOLERANCE)
    assert molecules[0].get_potential_energy() == low_level.get_property("energy", molecules[0])


def test_energies_alone_need_no_forces(delta_model: Model, low_level: LennardJones):
    water = molecule("H2O")
    energy = low_level.get_property("energy", water)
    water.calc = SinglePointCalculator(water, energy=energy)
    predictor = Predictor(*delta_model)
    (alone,) = predictor.predict([water], forces=False, low_level="attached")
    assert alone.forces is None
    assert alone.energy == pytest.approx(predictor.predict([water])[0].energy + energy, rel=0, abs=TOLERANCE)
    with pytest.raises(DataError, match=r'must have energy and forces of the low level.*"forces" is not available'):
        predictor.predict([water], low_level="attached")


def test_float32_networks_lose_nothing_of_the_low_level(
    single_delta_model: Model, molecules: list[Atoms], low_level: LennardJones
):
    predictor = Predictor(*single_delta_model)
    sums = predictor.predict(molecules, low_level=low_level)
    assert_sums(sums, predictor.predict(molecules), molecules, low_level, TOLERANCE)
    assert all(found.forces.dtype == np.float64 for found in sums)


def test_constraints_change_no_forces(delta_model: Model, low_level: LennardJones):
    """A fixed atom feels a force all the same; whoever moves atoms leaves it out."""
    free, fixed = molecule("H2O"), molecule("H2O")
    fixed.set_constraint(FixAtoms([0]))
    attach([free, fixed], low_level)
    predictor = Predictor(*delta_model)
    for source in (low_level, "attached"):
        one, other = predictor.predict([free, fixed], low_level=source)
        np.testing.assert_array_equal(one.forces, other.forces)


@pytest.mark.parametrize("name", ["model", "chain_model"])
def test_a_model_of_a_level_takes_none(request: pytest.FixtureRequest, low_level: LennardJones, name: str):
    model = request.getfixturevalue(name)
    message = (
        rf"needs a model of delta learning, got one of level {model[0].fidelities[-1]} itself; leave low_level out"
    )
    for source in (low_level, "attached"):
        with pytest.raises(ModelError, match=message):
            Predictor(*model).predict([molecule("H2O")], low_level=source)
    with pytest.raises(ModelError, match=message):
        PyKinMLCalculator(model, low_level=low_level)


def test_what_is_no_calculator_is_refused(delta_model: Model):
    message = r"must be an ASE calculator, got {}; give PyKinMLCalculator\(FILE\) for a model file"
    for wrong in ("low.safetensors", "attached", 0):
        with pytest.raises(ConfigError, match=message.format(repr(wrong))):
            PyKinMLCalculator(delta_model, low_level=wrong)
    with pytest.raises(ConfigError, match=message.format("'low.safetensors'")):
        Predictor(*delta_model).predict([molecule("H2O")], low_level="low.safetensors")


def test_the_low_level_of_a_calculator_is_there_to_be_read(delta_model: Model, low_level: LennardJones):
    """Results of before would stay if it could be changed."""
    calculator = PyKinMLCalculator(delta_model, low_level=low_level)
    assert calculator.low_level is low_level
    with pytest.raises(AttributeError, match="low_level"):
        calculator.low_level = LennardJones()


def moved(water: Atoms) -> None:
    water.positions[0, 2] += 0.01


def without_results(water: Atoms) -> None:
    water.calc = None


def without_energy(water: Atoms) -> None:
    water.calc = SinglePointCalculator(water, forces=np.zeros((3, 3)))


def not_a_number(water: Atoms) -> None:
    water.calc = SinglePointCalculator(water, energy=np.nan, forces=np.zeros((3, 3)))


def infinite(water: Atoms) -> None:
    water.calc = SinglePointCalculator(water, energy=0.0, forces=np.full((3, 3), np.inf))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved, "for the positions that it has now, and its calculator says"),
        (without_results, "must carry energy and forces of the low level, got none; give a calculator in its place"),
        (without_energy, 'its calculator says: The property "energy" is not available'),
        (not_a_number, "must have finite energy and forces of the low level, got nan eV"),
        (infinite, "must have finite energy and forces"),
    ],
)
def test_results_that_are_missing_or_of_other_positions_are_refused(
    delta_model: Model,
    low_level: LennardJones,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Atoms], None],
    message: str,
):
    images, predictor = [molecule("CH4"), molecule("H2O")], Predictor(*delta_model)
    attach(images, low_level)
    change(images[1])
    monkeypatch.setattr(predictor, "_evaluate", lambda *_: pytest.fail("evaluated in vain"))
    with pytest.raises(DataError, match=rf"^images\[1\] \(H2O\) .*{message}"):
        predictor.predict(images, low_level="attached")


@pytest.fixture
def database(make_structures: Callable[..., Structures], tmp_path: Path) -> tuple[Path, Structures]:
    """C2H2O.db with levels 0 and 1, of which the second structure has level 0 alone."""
    structures = make_structures(["C2H2O"] * 4, levels=(0, 1))
    structures.energies[1, 1] = np.nan
    write_database(tmp_path / "C2H2O.db", structures, {0: "low", 1: "high"})
    return tmp_path / "C2H2O.db", structures


def test_levels_of_files_are_added(delta_model: Model, database: tuple[Path, Structures]):
    path, structures = database
    predictor = Predictor(*delta_model)
    images = read_low_level([path], 0, delta_model[0])
    sums, differences = predictor.predict(images, low_level="attached"), predictor.predict(images)
    low = [found.energy - difference.energy for found, difference in zip(sums, differences, strict=True)]
    np.testing.assert_allclose(low, structures.energies[:, 0], rtol=0, atol=1e-9)
    forces = [found.forces - difference.forces for found, difference in zip(sums, differences, strict=True)]
    np.testing.assert_allclose(np.concatenate(forces), structures.forces[:, 0], rtol=0, atol=1e-9)


def test_levels_of_files_must_be_the_models_and_complete(delta_model: Model, database: tuple[Path, Structures]):
    path, structures = database
    with pytest.raises(ModelError, match="low_level must be the model's, 0, got 1; give that level"):
        read_low_level([path], 1, delta_model[0])
    structures.energies[:2, 0] = np.nan
    write_database(path.with_name("C2H2O.some.db"), structures, {0: "low", 1: "high"})
    with pytest.raises(DataError, match="must have an energy at level 0, and 2 of 8 have none; leave them out"):
        read_low_level([path, path.with_name("C2H2O.some.db")], 0, delta_model[0])


def test_forces_that_a_file_lacks_are_named_with_it(delta_model: Model, database: tuple[Path, Structures]):
    path, structures = database
    structures.forces[5:10, 0] = np.nan
    write_database(path.with_name("C2H2O.second.db"), structures, {0: "low", 1: "high"})
    images = read_low_level([path.with_name("C2H2O.second.db")], 0, delta_model[0])
    with pytest.raises(DataError, match=r"C2H2O\.second\.db, C2H2O\.second/2 \(C2H2O\) must have energy and forces"):
        Predictor(*delta_model).predict(images, low_level="attached")
