"""The predictor equals `level_energies_and_forces` structure by structure, also member by member; files and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.formats.sources import read_structures
from pykinml_func.errors import DataError, ModelError
from pykinml_func.inference import predictor as module
from pykinml_func.inference.prediction_files import write_predictions
from pykinml_func.inference.predictor import Prediction, Predictor
from pykinml_func.potential.aev import aevs
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import member_of, stack_members
from pykinml_func.potential.forces import energy_and_forces, level_energies_and_forces
from pykinml_func.training.model_file import save_ensemble, save_model
from pykinml_func.types import Batch, Calibration, Domain, Ensemble, Params, Structures

Model = tuple[ModelConfig, Params]

TOLERANCE = 1e-10
"""eV and eV/Å in float64"""


def one_by_one(model: Model, images: list[Atoms]) -> list[Prediction]:
    config, params = model
    found = []
    for atoms in images:
        species = torch.tensor([config.aev.elements.index(symbol) for symbol in atoms.symbols])
        energies, forces = level_energies_and_forces(config, params, species, torch.from_numpy(atoms.positions))
        own = energies.numpy(), forces.numpy()
        alone = own[0][None], own[1][None]
        found.append(Prediction(config.fidelities, config.baseline is not None, *own, *alone))
    return found


def largest_difference(some: list[Prediction], others: list[Prediction]) -> float:
    """Of energies and forces at every level."""
    energies, forces = [], []
    for a, b in zip(some, others, strict=True):
        assert a.level_energies.shape == (len(a.fidelities),) == b.level_energies.shape
        assert a.level_forces is not None and b.level_forces is not None
        assert a.level_forces.shape == b.level_forces.shape
        energies.append(np.abs(a.level_energies - b.level_energies).max())
        forces.append(np.abs(a.level_forces - b.level_forces).max())
    return float(max(*energies, *forces))


@pytest.fixture(params=["model", "chain_model", "delta_model"])
def any_model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 7, 1000])
def test_equals_one_structure_at_a_time(any_model: Model, molecules: list[Atoms], batch_size: int | None):
    config, _ = any_model
    found = Predictor(*any_model).predict(molecules, batch_size=batch_size)
    assert largest_difference(found, one_by_one(any_model, molecules)) < TOLERANCE
    for prediction, atoms in zip(found, molecules, strict=True):
        assert prediction.fidelities == config.fidelities
        assert prediction.is_difference == (config.baseline is not None)
        assert prediction.level_forces.shape == (config.n_levels, len(atoms), 3)


def test_energy_and_forces_are_of_the_highest_level(chain_model: Model, molecules: list[Atoms]):
    for found, atoms in zip(Predictor(*chain_model).predict(molecules), molecules, strict=True):
        species = torch.tensor([chain_model[0].aev.elements.index(symbol) for symbol in atoms.symbols])
        energy, forces = energy_and_forces(*chain_model, species, torch.from_numpy(atoms.positions))
        assert found.energy == pytest.approx(energy.item(), rel=0, abs=TOLERANCE)
        np.testing.assert_allclose(found.forces, forces.numpy(), rtol=0, atol=TOLERANCE)
        assert abs(found.level_energies[0] - found.energy) > 1, "levels differ"


def batches_of(
    model: Model, molecules: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Prediction], list[list[int]]]:
    """What is predicted, and the sizes of the structures of each batch."""
    sizes: list[list[int]] = []

    class Recorded(module.Packer):
        def pack(self, index: np.ndarray) -> Batch:
            sizes.append(np.diff(self.source.offsets)[index].tolist())
            return super().pack(index)

    monkeypatch.setattr(module, "Packer", Recorded)
    return Predictor(*model).predict(molecules), sizes


@pytest.mark.parametrize("most", [1, 40, 200])
def test_default_batches_are_bounded(
    model: Model, molecules: list[Atoms], either_aevs: bool, most: int, monkeypatch: pytest.MonkeyPatch
):
    """In atoms with the compiled AEVs, in angles without; none is smaller than it must be."""
    monkeypatch.setattr(module, "_BATCH_ATOMS" if either_aevs else "_BATCH_ANGLES", most)
    found, sizes = batches_of(model, molecules, monkeypatch)
    assert largest_difference(found, one_by_one(model, molecules)) < TOLERANCE
    assert sorted(chain.from_iterable(sizes)) == sorted(len(atoms) for atoms in molecules)

    def cost(batch: list[int]) -> int:
        n = max(batch)
        return len(batch) * (n if either_aevs else max(1, n * (n - 1) * (n - 2) // 2))

    assert all(len(batch) == 1 or cost(batch) <= most for batch in sizes)
    assert all(cost([*batch, after[0]]) > most for batch, after in pairwise(sizes))


def test_order_of_atoms_and_images_does_not_matter(chain_model: Model, molecules: list[Atoms]):
    predictor, generator = Predictor(*chain_model), np.random.default_rng(2)
    expected = predictor.predict(molecules)
    orders = [generator.permutation(len(atoms)) for atoms in molecules]
    found = predictor.predict([atoms[order] for atoms, order in zip(molecules, orders, strict=True)][::-1])[::-1]
    sorted_back = [
        one._replace(level_forces=one.level_forces[:, np.argsort(order)])
        for one, order in zip(found, orders, strict=True)
    ]
    assert largest_difference(sorted_back, expected) < TOLERANCE


def test_energies_alone(any_model: Model, molecules: list[Atoms]):
    predictor = Predictor(*any_model)
    found = predictor.predict(molecules, forces=False)
    assert all(prediction.forces is None and prediction.level_forces is None for prediction in found)
    expected = [prediction.level_energies for prediction in predictor.predict(molecules)]
    np.testing.assert_allclose([one.level_energies for one in found], expected, rtol=0, atol=TOLERANCE)


def test_nothing_in_nothing_out(model: Model):
    assert Predictor(*model).predict([]) == []


@pytest.mark.parametrize("name", ["model", "chain_model", "delta_model"])
def test_float32_networks_keep_float64_self_energies(request: pytest.FixtureRequest, molecules: list[Atoms], name: str):
    models = (request.getfixturevalue(name), request.getfixturevalue(f"single_{name}"))
    double, single = (Predictor(*model).predict(molecules) for model in models)
    assert 1e-12 < largest_difference(single, double) < 1e-5  # float32 would hold -5000 eV to 5e-4
    assert all(prediction.level_forces.dtype == np.float64 for prediction in single)


def test_loads_a_model_file(model: Model, molecules: list[Atoms], tmp_path: Path):
    save_model(tmp_path / "model.safetensors", *model)
    found = Predictor.load(tmp_path / "model.safetensors").predict(molecules)
    assert largest_difference(found, Predictor(*model).predict(molecules)) < TOLERANCE
    with pytest.raises(ModelError, match="no model file"):
        Predictor.load(tmp_path / "other.safetensors")


def in_a_cell() -> Atoms:
    atoms = molecule("H2O")
    atoms.cell, atoms.pbc = [9, 9, 9], [False, False, True]
    return atoms


@pytest.mark.parametrize(
    ("atoms", "error", "message"),
    [
        (molecule("NH3"), ModelError, r"images\[1\] \(H3N\) must be of the model's elements, C, H, O, got N;"),
        (in_a_cell(), ModelError, r"images\[1\] \(H2O\) must be a molecule in the gas phase.*periodic cell"),
        (Atoms(), DataError, r"images\[1\] \(\) must have at least one atom"),
        (Atoms("OH", [[0, 0, 0], [0, np.nan, 1]]), DataError, r"finite positions, got \[0.0, nan, 1.0\] for atom 1"),
        (Atoms("OH", [[0, 0, 0], [0, np.inf, 1]]), DataError, "finite positions"),
        (
            Atoms("OHH", [[0, 0, 0], [0, 0, 1], [0, 5e-4, 1]]),
            DataError,
            "at least 0.001 Å apart, got atoms 1 and 2 in one place",
        ),
    ],
)
def test_refuses_what_the_model_cannot_predict(model: Model, atoms: Atoms, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Predictor(*model).predict([molecule("H2O"), atoms])


@pytest.mark.parametrize("change", [{"pbc": True}, {"cell": [9, 9, 9]}])
def test_takes_a_box_that_is_not_periodic(model: Model, change: dict[str, object]):
    atoms = molecule("H2O")
    for name, value in change.items():
        setattr(atoms, name, value)
    found = Predictor(*model).predict([atoms, molecule("H2O")])
    assert largest_difference(found[:1], found[1:]) < TOLERANCE


def test_refuses_a_batch_of_none(model: Model):
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        Predictor(*model).predict([molecule("H2O")], batch_size=0)


def test_extxyz_round_trip(model: Model, molecules: list[Atoms], tmp_path: Path):
    molecules[0].calc = SinglePointCalculator(molecules[0], energy=1.0, forces=np.ones((4, 3)))
    molecules[1].info["energy"] = 2.0  # labels that are not the model's
    molecules[1].arrays["forces"] = np.ones((5, 3))
    predictions = Predictor(*model).predict(molecules)
    path = tmp_path / "new" / "out.extxyz"
    write_predictions(path, molecules, predictions)
    frames = ase.io.read(path, index=":")
    for frame, prediction in zip(frames, predictions, strict=True):
        assert frame.get_potential_energy() == pytest.approx(prediction.energy, abs=1e-8)  # what the format holds
        np.testing.assert_allclose(frame.get_forces(), prediction.forces, rtol=0, atol=1e-8)
        assert not {"energy_std", "extrapolation", "is_extrapolated"} & frame.info.keys()
    for frame, atoms in zip(frames, molecules, strict=True):
        assert (frame.numbers == atoms.numbers).all()
        np.testing.assert_allclose(frame.positions, atoms.positions, rtol=0, atol=1e-8)
    assert molecules[0].get_potential_energy() == 1.0
    assert molecules[1].info["energy"] == 2.0
    assert [entry.name for entry in path.parent.iterdir()] == ["out.extxyz"]


def test_each_level_is_written_and_read_back(chain_model: Model, molecules: list[Atoms], tmp_path: Path):
    molecules[0].info["energy_0"], molecules[0].arrays["forces_0"] = 2.0, np.ones((4, 3))  # labels, not the model's
    predictions, path = Predictor(*chain_model).predict(molecules), tmp_path / "out.extxyz"
    write_predictions(path, molecules, predictions)
    frames = ase.io.read(path, index=":")
    for frame, prediction in zip(frames, predictions, strict=True):
        assert set(frame.info) == {"energy_0", "energy_2"}
        assert [frame.info["energy_0"], frame.info["energy_2"]] == pytest.approx(
            prediction.level_energies[:2].tolist(), abs=1e-8
        )
        np.testing.assert_allclose(frame.arrays["forces_2"], prediction.level_forces[1], rtol=0, atol=1e-8)
        assert frame.get_potential_energy() == pytest.approx(prediction.energy, abs=1e-8)
    for column, level in enumerate(chain_model[0].fidelities):  # as labels of that level
        for image, prediction in zip(read_structures([path], level), predictions, strict=True):
            assert image.get_potential_energy() == pytest.approx(prediction.level_energies[column], abs=1e-8)
            np.testing.assert_allclose(image.get_forces(), prediction.level_forces[column], rtol=0, atol=1e-8)


def test_a_difference_is_not_written_as_an_energy(delta_model: Model, molecules: list[Atoms], tmp_path: Path):
    molecules[1].info["energy"] = 2.0
    molecules[2].calc = SinglePointCalculator(molecules[2], energy=1.0)
    predictions, path = Predictor(*delta_model).predict(molecules), tmp_path / "out.extxyz"
    write_predictions(path, molecules, predictions)
    for frame, prediction in zip(ase.io.read(path, index=":"), predictions, strict=True):
        assert frame.calc is None
        assert frame.info == {"energy_difference": pytest.approx(prediction.energy, abs=1e-8)}
        np.testing.assert_allclose(frame.arrays["forces_difference"], prediction.forces, rtol=0, atol=1e-8)
        assert "forces" not in frame.arrays
    with pytest.raises(DataError, match="no structure of"):
        read_structures([path], level=1)


def test_energies_without_forces_stand_beside_no_other_forces(chain_model: Model, tmp_path: Path):
    water = molecule("H2O")
    water.arrays["forces_0"] = np.ones((3, 3))
    predictions = Predictor(*chain_model).predict([water], forces=False)
    write_predictions(tmp_path / "out.extxyz", [water], predictions)
    frame = ase.io.read(tmp_path / "out.extxyz")
    assert frame.info["energy_0"] == pytest.approx(predictions[0].level_energies[0], abs=1e-8)
    assert not [name for name in frame.arrays if name.startswith("forces")]


def test_energies_alone_are_written_without_forces(model: Model, tmp_path: Path):
    water = [molecule("H2O")]
    predictions = Predictor(*model).predict(water, forces=False)
    write_predictions(tmp_path / "out.xyz", water, predictions)
    (frame,) = ase.io.read(tmp_path / "out.xyz", index=":")
    assert frame.get_potential_energy() == pytest.approx(predictions[0].energy, abs=1e-8)
    assert "forces" not in frame.calc.results


def test_refuses_to_write_where_it_cannot(model: Model, tmp_path: Path):
    (tmp_path / "file").write_text("")
    water = [molecule("H2O")]
    with pytest.raises(DataError, match="cannot be written"):
        write_predictions(tmp_path / "file" / "out.extxyz", water, Predictor(*model).predict(water))


def test_reads_all_frames_of_all_files_and_names_them_in_errors(model: Model, molecules: list[Atoms], tmp_path: Path):
    first, second = tmp_path / "many.xyz", tmp_path / "odd@1.traj"
    ase.io.write(first, molecules)
    ase.io.write(second, [molecule("H2O"), molecule("NH3")], format="traj")
    images = read_structures([first, str(second)])
    assert [atoms.get_chemical_formula() for atoms in images] == [
        *(atoms.get_chemical_formula() for atoms in molecules),
        "H2O",
        "H3N",
    ]
    with pytest.raises(ModelError, match=r"odd@1\.traj@1 \(H3N\) must be of the model's elements"):
        Predictor(*model).predict(images)


def test_reads_pykinml_databases(model: Model, make_structures: Callable[..., Structures], tmp_path: Path):
    structures = make_structures(["C2H2O"] * 3)
    path = tmp_path / "C2H2O.db"
    write_database(path, structures, {1: "made up"})
    images = read_structures([path])
    assert [atoms.get_chemical_formula() for atoms in images] == ["C2H2O"] * 3
    np.testing.assert_array_equal(np.concatenate([atoms.positions for atoms in images]), structures.positions)
    assert largest_difference(Predictor(*model).predict(images), one_by_one(model, images)) < TOLERANCE
    images[1].positions[0] = np.nan
    with pytest.raises(DataError, match=r"C2H2O\.db, C2H2O/2 \(C2H2O\) must have finite positions"):
        Predictor(*model).predict(images)


@pytest.mark.parametrize("name", ["out.traj", "out.db", "out.json", "out.cif", "POSCAR"])
def test_refuses_the_name_of_another_format(model: Model, tmp_path: Path, name: str):
    water = [molecule("H2O")]
    with pytest.raises(DataError, match=r"name it \.extxyz or \.xyz"):
        write_predictions(tmp_path / name, water, Predictor(*model).predict(water))
    assert not list(tmp_path.iterdir())


N_MEMBERS = 3


def ensemble_of(model: Model, **known: Any) -> Ensemble:
    """Members that differ in networks and self energies."""
    config, params = model
    members = []
    for seed in range(N_MEMBERS):
        drawn = init_params(config, torch.Generator().manual_seed(seed))
        networks = tree_map(lambda new, old: new.to(old), drawn.networks, params.networks)
        members.append(Params(networks, params.self_energies + 0.01 * seed))
    return Ensemble(config, stack_members(members), **known)


def domain_of(config: ModelConfig) -> Domain:
    generator = torch.Generator().manual_seed(4)
    n_species, length = len(config.aev.elements), config.aev.length
    whitener = torch.randn(n_species, length, 5, generator=generator)
    return Domain(torch.rand(n_species, length, generator=generator), whitener, torch.tensor([2.0, 3.0, 4.0]))


def test_every_member_is_what_it_is_alone(any_model: Model, molecules: list[Atoms]):
    ensemble = ensemble_of(any_model)
    alone = [
        Predictor(ensemble.model_config, member_of(ensemble.members, place)).predict(molecules)
        for place in range(N_MEMBERS)
    ]
    for m, found in enumerate(Predictor(ensemble).predict(molecules, batch_size=3)):
        energies = np.stack([each[m].level_energies for each in alone])
        forces = np.stack([each[m].level_forces for each in alone])
        np.testing.assert_allclose(found.member_energies, energies, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.member_forces, forces, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.level_energies, energies.mean(axis=0), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.level_forces, forces.mean(axis=0), rtol=0, atol=TOLERANCE)
        assert found.energy_std == pytest.approx(energies[:, -1].std(ddof=1), rel=1e-8)
        np.testing.assert_allclose(found.forces_std, forces[:, -1].std(axis=0, ddof=1), rtol=0, atol=TOLERANCE)
        assert math.isnan(found.spread) and math.isnan(found.distance) and math.isnan(found.extrapolation)
        assert not found.is_extrapolated


def test_one_member_has_no_spread(any_model: Model, molecules: list[Atoms]):
    config, params = any_model
    for found in Predictor(Ensemble(config, stack_members([params]))).predict(molecules):
        np.testing.assert_array_equal(found.member_energies, found.level_energies[None])
        np.testing.assert_array_equal(found.member_forces, found.level_forces[None])
        assert found.energy_std is None and found.forces_std is None and math.isnan(found.extrapolation)


def test_standard_deviations_are_calibrated(chain_model: Model, molecules: list[Atoms]):
    """By the scale of the highest level; the largest of the structures is the limit where that is its number."""
    plain = Predictor(ensemble_of(chain_model)).predict(molecules)
    largest = max(2.5 * one.energy_std / math.sqrt(len(atoms)) for one, atoms in zip(plain, molecules, strict=True))
    scales = torch.tensor([[9.0, 9.0, 2.5], [9.0, 9.0, 0.5]], dtype=torch.float64)
    calibration = Calibration(*scales, torch.tensor(largest, dtype=torch.float64))
    found = Predictor(ensemble_of(chain_model, calibration=calibration)).predict(molecules)
    for one, other, atoms in zip(found, plain, molecules, strict=True):
        assert one.energy_std == pytest.approx(2.5 * other.energy_std, rel=1e-12)
        np.testing.assert_allclose(one.forces_std, 0.5 * other.forces_std, rtol=1e-12)
        assert one.spread == pytest.approx(one.energy_std / math.sqrt(len(atoms)) / largest, rel=1e-12)
        assert one.extrapolation == one.spread
    assert max(one.spread for one in found) == pytest.approx(1, rel=1e-12)
    assert not any(one.spread > 1 + 1e-12 for one in found)


def test_an_unknown_scale_leaves_the_plain_standard_deviation(model: Model, molecules: list[Atoms]):
    unknown = torch.full((1,), torch.nan)
    calibration = Calibration(unknown, unknown, torch.tensor(0.5))
    plain, found = (
        Predictor(ensemble_of(model, calibration=known)).predict(molecules) for known in (None, calibration)
    )
    for one, other in zip(found, plain, strict=True):
        assert one.energy_std == other.energy_std
        np.testing.assert_array_equal(one.forces_std, other.forces_std)


@pytest.mark.parametrize("members", [1, N_MEMBERS])
@pytest.mark.parametrize("forces", [True, False])
def test_distances_are_those_of_the_domain(
    model: Model, molecules: list[Atoms], members: int, forces: bool, either_aevs: bool
):
    """Of the farthest atom, from AEVs computed one structure at a time."""
    assert either_aevs in (True, False)
    config, domain = model[0], domain_of(model[0])
    whole = ensemble_of(model, domain=domain)
    if members == 1:
        whole = whole._replace(members=stack_members([model[1]]))
    images = molecules + molecules[:1] * 11  # so that the step is recorded
    for atoms, found in zip(images, Predictor(whole).predict(images, forces=forces, batch_size=1), strict=True):
        species = torch.tensor([config.aev.elements.index(symbol) for symbol in atoms.symbols])
        own = aevs(config.aev, species, torch.from_numpy(atoms.positions))
        offsets = (own - domain.mean[species]).float()
        lengths = torch.einsum("nd,ndk->nk", offsets, domain.whitener[species]).norm(dim=1) / domain.farthest[species]
        assert found.distance == pytest.approx(lengths.max().item(), rel=1e-4)
        assert found.is_extrapolated == (found.distance > 1)


def test_the_larger_number_says_how_far_beyond_the_data(model: Model, molecules: list[Atoms]):
    domain = domain_of(model[0])
    whole = ensemble_of(model, calibration=Calibration(torch.ones(1), torch.ones(1), torch.tensor(1.0)), domain=domain)
    limit = np.median([one.spread / one.distance for one in Predictor(whole).predict(molecules)])
    calibration = Calibration(torch.ones(1), torch.ones(1), torch.tensor(limit))
    found = Predictor(whole._replace(calibration=calibration)).predict(molecules)
    assert {one.spread > one.distance for one in found} == {True, False}
    assert all(one.extrapolation == max(one.spread, one.distance) for one in found)


def test_a_low_level_is_added_to_every_member(delta_model: Model, molecules: list[Atoms], low_level: LennardJones):
    predictor = Predictor(ensemble_of(delta_model))
    for atoms, found, difference in zip(
        molecules, predictor.predict(molecules, low_level=low_level), predictor.predict(molecules), strict=True
    ):
        energy, forces = low_level.get_potential_energy(atoms), low_level.get_forces(atoms)
        np.testing.assert_allclose(found.member_energies, difference.member_energies + energy, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.member_forces, difference.member_forces + forces, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.forces, difference.forces + forces, rtol=0, atol=TOLERANCE)
        assert found.energy_std == pytest.approx(difference.energy_std, rel=1e-9)


def test_loads_an_ensemble(model: Model, molecules: list[Atoms], tmp_path: Path):
    calibration = Calibration(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor(0.01))
    whole = ensemble_of(model, calibration=calibration, domain=domain_of(model[0]))
    save_ensemble(tmp_path / "model.safetensors", whole)
    for found, expected in zip(
        Predictor.load(tmp_path / "model.safetensors").predict(molecules, forces=False),
        Predictor(whole).predict(molecules),
        strict=True,
    ):
        np.testing.assert_allclose(found.member_energies, expected.member_energies, rtol=0, atol=TOLERANCE)
        assert found.energy_std == pytest.approx(expected.energy_std, rel=1e-9)
        assert found.extrapolation == pytest.approx(expected.extrapolation, rel=1e-9)
        assert found.forces_std is None and found.member_forces is None


def test_takes_an_ensemble_or_config_and_params(model: Model):
    with pytest.raises(TypeError, match="takes an Ensemble, or a ModelConfig and Params"):
        Predictor(model[0])


def test_what_is_known_of_trust_is_written(model: Model, molecules: list[Atoms], tmp_path: Path):
    calibration = Calibration(torch.ones(1), torch.ones(1), torch.tensor(0.01))
    whole = ensemble_of(model, calibration=calibration, domain=domain_of(model[0]))
    predictions, path = Predictor(whole).predict(molecules), tmp_path / "out.extxyz"
    write_predictions(path, molecules, predictions)
    frames = ase.io.read(path, index=":")
    for frame, prediction in zip(frames, predictions, strict=True):
        assert frame.info["energy_std"] == pytest.approx(prediction.energy_std, abs=1e-8)
        np.testing.assert_allclose(frame.arrays["forces_std"], prediction.forces_std, rtol=0, atol=1e-8)
        assert frame.info["extrapolation"] == pytest.approx(prediction.extrapolation, rel=1e-7)
        assert frame.info["is_extrapolated"] == prediction.is_extrapolated
    write_predictions(path, frames, Predictor(*model).predict(frames))  # of which nothing is known
    for frame in ase.io.read(path, index=":"):
        assert not {"energy_std", "extrapolation", "is_extrapolated"} & frame.info.keys()
        assert "forces_std" not in frame.arrays
