"""What ASE reads: extended XYZ, its databases, trajectories; labels by level, molecules only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from pykinml_func.data.formats import ase_files, blocks
from pykinml_func.data.formats.sources import input_format, read_inputs
from pykinml_func.errors import DataError
from pykinml_func.types import Structures


def labelled(formula: str, energy: float, **info: Any) -> Atoms:
    """A molecule with a calculator's energy, and forces of its digits."""
    atoms = molecule(formula)
    atoms.info |= info
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.arange(3.0 * len(atoms)).reshape(-1, 3) / 8)
    return atoms


@pytest.fixture
def images() -> list[Atoms]:
    """Water twice and methane; one of them without any label, two with a lower level's energy."""
    first, second = labelled("H2O", -1.5, name="a", temperature=300), labelled("CH4", -2.5, energy_0=-20.0, name=111)
    second.arrays["forces_0"] = np.ones((5, 3))
    third = molecule("H2O")
    third.info |= {"energy_0": -10.0, "name": "a"}
    return [first, second, third]


def write_database(path: Path, images: list[Atoms]) -> None:
    """An ASE database whose first row was deleted."""
    with ase.db.connect(path) as database:
        database.write(molecule("NH3"))
        for atoms in images:
            data = {key: value for key, value in atoms.arrays.items() if key == "forces_0"}
            database.write(atoms, **atoms.info, data=data)
        del database[1]


@pytest.mark.parametrize("name", ["set.extxyz", "set.xyz", "set.traj"])
def test_labels_of_all_levels_are_read(tmp_path: Path, images: list[Atoms], name: str):
    path = tmp_path / name
    ase.io.write(path, images)
    found, lines = read_inputs([path], [0, 1])
    assert input_format(path) == "ase"
    assert found.ids.tolist() == ["set/1", "set/2", "set/3"]
    assert found.names.tolist() == ["a", "111", "a"]
    np.testing.assert_array_equal(found.temperatures, [300, np.nan, np.nan])
    np.testing.assert_array_equal(found.energies, [[np.nan, -1.5], [-20, -2.5], [-10, np.nan]])
    np.testing.assert_allclose(found.positions, np.concatenate([atoms.positions for atoms in images]), atol=1e-8)
    expected = np.full((11, 2, 3), np.nan)
    expected[:3, 1], expected[3:8, 1] = (np.arange(3.0 * n).reshape(n, 3) / 8 for n in (3, 5))
    expected[3:8, 0] = np.nan if name.endswith("traj") else 1  # a trajectory keeps no arrays of other names
    np.testing.assert_array_equal(found.forces, expected)
    assert lines == (f"{name}: read by ASE, 3 structures, energies eV, forces eV/Å (2 have them)",)


@pytest.mark.parametrize("name", ["set.db", "set.json"])
def test_databases_of_ase_have_labels_in_pairs_and_data(tmp_path: Path, images: list[Atoms], name: str):
    path = tmp_path / name
    images[1].info["name"] = "b"
    write_database(path, images)
    found, _ = read_inputs([path], [0, 1])
    assert input_format(path) == "ase"
    assert found.ids.tolist() == ["set/2", "set/3", "set/4"], "rows keep the database's numbers"
    assert found.names.tolist() == ["a", "b", "a"]
    np.testing.assert_array_equal(found.temperatures, [300, np.nan, np.nan])
    np.testing.assert_array_equal(found.energies, [[np.nan, -1.5], [-20, -2.5], [-10, np.nan]])
    np.testing.assert_array_equal(found.forces[3:8, 0], np.ones((5, 3)))


@pytest.mark.parametrize("few", [1, 2, 3])
@pytest.mark.parametrize("name", ["set.extxyz", "set.traj", "set.db"])
def test_long_files_are_read_as_short_ones(
    tmp_path: Path, images: list[Atoms], monkeypatch: pytest.MonkeyPatch, name: str, few: int
):
    path = tmp_path / name
    if name == "set.db":
        images[1].info["name"] = "b"
        write_database(path, images)
    else:
        ase.io.write(path, images)
    expected = [read_inputs([path], levels) for levels in ([0], [1], [0, 1])]
    monkeypatch.setattr(ase_files, "_FEW", few)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 1)
    for levels, (whole, lines) in zip(([0], [1], [0, 1]), expected, strict=True):
        found, again = read_inputs([path], levels)
        assert again == lines
        for field, a, b in zip(Structures._fields, found, whole, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=field)


def test_a_long_text_is_gone_through_once_as_structures(
    tmp_path: Path, images: list[Atoms], monkeypatch: pytest.MonkeyPatch
):
    ase.io.write(tmp_path / "set.extxyz", images)
    monkeypatch.setattr(ase_files, "_FEW", 1)
    iread, reads = ase.io.iread, []
    monkeypatch.setattr(ase.io, "iread", lambda path, **named: reads.append(path) or iread(path, **named))
    assert read_inputs([tmp_path / "set.extxyz"], [1])[0].n_structures == 2
    assert len(reads) == 1, "energy_1 is nowhere in it"
    read_inputs([tmp_path / "set.extxyz"], [0])
    assert len(reads) == 3


def test_structures_without_energies_are_left_out_and_counted(tmp_path: Path, images: list[Atoms]):
    ase.io.write(tmp_path / "set.extxyz", images)
    found, (line,) = read_inputs([tmp_path / "set.extxyz"], [1])
    assert found.ids.tolist() == ["set/1", "set/2"]
    assert line.endswith("forces eV/Å, 1 without energies left out")


def test_a_level_that_is_named_has_no_other_energies(tmp_path: Path, images: list[Atoms]):
    ase.io.write(tmp_path / "set.extxyz", images)
    found, _ = read_inputs([tmp_path / "set.extxyz"], [0])
    assert found.ids.tolist() == ["set/2", "set/3"], "a calculator's energy is not level 0's here"


def test_no_energies_at_all_says_what_is_expected_and_there(tmp_path: Path, images: list[Atoms]):
    for atoms in images:
        atoms.calc = None
    ase.io.write(tmp_path / "set.extxyz", images)
    with pytest.raises(
        DataError,
        match=r"fidelity 1,.*set\.extxyz: 3 structures with energy_0, forces_0, name, numbers, positions, temperature; "
        r"their energies are looked for in energy_1 or a calculator's energy",
    ):
        read_inputs([tmp_path / "set.extxyz"], [1])


def test_periodic_structures_are_refused(tmp_path: Path, images: list[Atoms]):
    images[1].cell, images[1].pbc = [9, 9, 9], True
    ase.io.write(tmp_path / "set.extxyz", images)
    with pytest.raises(DataError, match=r"set\.extxyz, structure 2 must be a molecule in the gas phase"):
        read_inputs([tmp_path / "set.extxyz"], [1])
    images[1].pbc = False
    ase.io.write(tmp_path / "set.extxyz", images)
    assert read_inputs([tmp_path / "set.extxyz"], [1])[0].n_structures == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.info.update(temperature="hot"), "temperature must be a number of K, got 'hot'"),
        (lambda atoms: atoms.info.update(energy_0="low"), "energy at level 0 must be a finite number of eV, got 'low'"),
        (lambda atoms: atoms.set_array("forces_0", np.ones((3, 2))), "forces at level 0 must be 3 x 3 finite numbers"),
        (lambda atoms: atoms.positions.__setitem__(1, atoms.positions[0]), "got atoms 0 and 1 in one place"),
        (lambda atoms: atoms.numbers.__setitem__(0, 0), "atomic numbers of 1 or more, got 0"),
    ],
)
def test_broken_structures_are_refused(tmp_path: Path, images: list[Atoms], change: Any, message: str):
    images[0].info["energy_0"] = -3.0
    change(images[0])
    ase.io.write(tmp_path / "set.extxyz", images)
    with pytest.raises(DataError, match=rf"set\.extxyz, structure 1.*{message}"):
        read_inputs([tmp_path / "set.extxyz"], [0, 1])
