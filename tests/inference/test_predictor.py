"""The predictor equals `energy_and_forces` structure by structure; its files and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from pykinml_func.config import ModelConfig
from pykinml_func.data.database import write_database
from pykinml_func.errors import DataError, ModelError
from pykinml_func.inference import predictor as module
from pykinml_func.inference.predictor import Prediction, Predictor, read_structures, write_predictions
from pykinml_func.potential.forces import energy_and_forces
from pykinml_func.training.checkpoint import save_model
from pykinml_func.types import Params, Structures

Model = tuple[ModelConfig, Params]

TOLERANCE = 1e-10
"""eV and eV/Å in float64"""


def one_by_one(model: Model, images: list[Atoms]) -> list[Prediction]:
    config, params = model
    found = []
    for atoms in images:
        species = torch.tensor([config.aev.elements.index(symbol) for symbol in atoms.symbols])
        energy, forces = energy_and_forces(config, params, species, torch.from_numpy(atoms.positions))
        found.append(Prediction(energy.item(), forces.numpy()))
    return found


def largest_difference(some: list[Prediction], others: list[Prediction]) -> float:
    energies = [abs(a.energy - b.energy) for a, b in zip(some, others, strict=True)]
    forces = [np.abs(a.forces - b.forces).max() for a, b in zip(some, others, strict=True)]
    return float(max(*energies, *forces))


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 7, 1000])
def test_equals_one_structure_at_a_time(model: Model, molecules: list[Atoms], batch_size: int | None):
    found = Predictor(*model).predict(molecules, batch_size=batch_size)
    assert largest_difference(found, one_by_one(model, molecules)) < TOLERANCE
    assert [prediction.forces.shape for prediction in found] == [atoms.positions.shape for atoms in molecules]


@pytest.mark.parametrize("most_angles", [1, 40, 200])
def test_default_batches_hold_a_bounded_number_of_angles(
    model: Model, molecules: list[Atoms], most_angles: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(module._BATCH_ANGLES, "cpu", most_angles)
    sizes: list[list[int]] = []

    class Recorded(module.Packer):
        def pack(self, index: np.ndarray) -> module.Packer:
            sizes.append(np.diff(self.source.offsets)[index].tolist())
            return super().pack(index)

    monkeypatch.setattr(module, "Packer", Recorded)
    found = Predictor(*model).predict(molecules)
    assert largest_difference(found, one_by_one(model, molecules)) < TOLERANCE
    assert sum(len(batch) for batch in sizes) == len(molecules)
    for batch in sizes:
        n = max(batch)
        assert len(batch) == 1 or len(batch) * n * (n - 1) * (n - 2) // 2 <= most_angles


def test_order_of_atoms_and_images_does_not_matter(model: Model, molecules: list[Atoms]):
    predictor, generator = Predictor(*model), np.random.default_rng(2)
    expected = predictor.predict(molecules)
    orders = [generator.permutation(len(atoms)) for atoms in molecules]
    found = predictor.predict([atoms[order] for atoms, order in zip(molecules, orders, strict=True)][::-1])[::-1]
    sorted_back = [Prediction(f.energy, f.forces[np.argsort(o)]) for f, o in zip(found, orders, strict=True)]
    assert largest_difference(sorted_back, expected) < TOLERANCE


def test_energies_alone(model: Model, molecules: list[Atoms]):
    predictor = Predictor(*model)
    found = predictor.predict(molecules, forces=False)
    assert all(prediction.forces is None for prediction in found)
    expected = [prediction.energy for prediction in predictor.predict(molecules)]
    np.testing.assert_allclose([prediction.energy for prediction in found], expected, rtol=0, atol=TOLERANCE)


def test_nothing_in_nothing_out(model: Model):
    assert Predictor(*model).predict([]) == []


def test_float32_networks_keep_float64_self_energies(model: Model, single_model: Model, molecules: list[Atoms]):
    double, single = Predictor(*model).predict(molecules), Predictor(*single_model).predict(molecules)
    assert 1e-12 < largest_difference(single, double) < 1e-5  # float32 would hold -5000 eV to 5e-4
    assert all(prediction.forces.dtype == np.float64 for prediction in single)


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
    found = [Prediction(atoms.get_potential_energy(), atoms.get_forces()) for atoms in frames]
    assert largest_difference(found, predictions) < 1e-8  # what the format holds
    for frame, atoms in zip(frames, molecules, strict=True):
        assert (frame.numbers == atoms.numbers).all()
        np.testing.assert_allclose(frame.positions, atoms.positions, rtol=0, atol=1e-8)
    assert molecules[0].get_potential_energy() == 1.0
    assert molecules[1].info["energy"] == 2.0
    assert [entry.name for entry in path.parent.iterdir()] == ["out.extxyz"]


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


def test_reads_databases_without_or_with_few_energies(make_structures: Callable[..., Structures], tmp_path: Path):
    structures = make_structures(["C2H2O"] * 3)
    for name, labelled in (("C2H2O.db", 0), ("C2H2O.some.db", 1)):
        structures.energies[labelled:] = np.nan
        write_database(tmp_path / name, structures, {1: "made up"})
        images = read_structures([tmp_path / name])
        np.testing.assert_array_equal(np.concatenate([atoms.positions for atoms in images]), structures.positions)


@pytest.mark.parametrize("name", ["out.traj", "out.db", "out.json", "out.cif", "POSCAR"])
def test_refuses_the_name_of_another_format(model: Model, tmp_path: Path, name: str):
    water = [molecule("H2O")]
    with pytest.raises(DataError, match=r"name it \.extxyz or \.xyz"):
        write_predictions(tmp_path / name, water, Predictor(*model).predict(water))
    assert not list(tmp_path.iterdir())


def test_reads_ase_databases(tmp_path: Path):
    with ase.db.connect(tmp_path / "molecules.db") as database:
        database.write(molecule("H2O"))
        database.write(molecule("CH4"))
    images = read_structures([tmp_path / "molecules.db"])
    assert [atoms.get_chemical_formula() for atoms in images] == ["H2O", "CH4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.xyz", None, "no structure file"),
        ("empty.xyz", b"", "must hold at least one structure, got an empty file"),
        ("notes.txt", b"nothing of use\n", "must be in a format that ASE reads"),
        ("broken.xyz", b"3\n\nH 0 0\n", "must be in a format that ASE reads"),
        ("broken.db", b"SQLite format 3\0" + b"\1" * 2000, "must be in a format that ASE reads"),
    ],
)
def test_refuses_files_without_structures(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_structures([tmp_path / name])
    assert name in str(caught.value)
