"""All inputs through one front: formats by content, mixed sources, ids that split files can name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from pykinml_func.data.formats.database import read_databases, write_database
from pykinml_func.data.formats.sources import find_inputs, input_format, read_inputs, read_structures
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

HARTREE = 27.211386024367243
"""eV; CODATA 2014, as ASE has it"""


@pytest.fixture
def water(make_structures: Callable[..., Structures]) -> Structures:
    return make_structures(["H2O"] * 3, 2, (1,))


@pytest.fixture
def folder(tmp_path: Path, make_structures: Callable[..., Structures], water: Structures) -> Path:
    """CH4.db, and the same three water molecules as H2O.db, ani.h5 and set.xyz."""
    write_database(tmp_path / "CH4.db", make_structures(["CH4"] * 4, 1, (1,)), {1: "made up"})
    write_database(tmp_path / "H2O.db", water, {1: "made up"})
    positions, forces = water.positions.reshape(3, 3, 3), water.forces.reshape(3, 3, 3)
    with h5py.File(tmp_path / "ani.h5", "w") as file:
        file["water/species"] = [b"H", b"H", b"O"]
        file["water/coordinates"] = positions
        file["water/energies"] = water.energies[:, 0] / HARTREE
        file["water/forces"] = forces / HARTREE
    images = [Atoms("H2O", one) for one in positions]
    for atoms, energy, force in zip(images, water.energies[:, 0], forces, strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=force)
    ase.io.write(tmp_path / "set.xyz", images)
    return tmp_path


def test_sources_of_all_formats_mix(folder: Path, water: Structures):
    paths = find_inputs([str(folder / "*")])
    assert [path.name for path in paths] == ["CH4.db", "H2O.db", "ani.h5", "set.xyz"]
    assert [input_format(path) for path in paths] == ["sqlite", "sqlite", "ani", "ase"]
    found, lines = read_inputs(paths, [1])
    assert [text.split("/")[0] for text in found.ids] == ["CH4"] * 4 + ["H2O"] * 3 + ["ani"] * 3 + ["set"] * 3
    for first in (4, 7, 10):
        part = found.take(np.arange(first, first + 3))
        np.testing.assert_array_equal(part.numbers, water.numbers)
        np.testing.assert_allclose(part.positions, water.positions, rtol=0, atol=1e-8)
        np.testing.assert_allclose(part.energies, water.energies, rtol=0, atol=1e-10)
        np.testing.assert_allclose(part.forces, water.forces, rtol=0, atol=1e-8)
    assert lines == (
        "CH4.db: PyKinML database, 4 structures, energies eV, forces eV/Å",
        "H2O.db: PyKinML database, 3 structures, energies eV, forces eV/Å",
        "ani.h5: ANI HDF5, 3 structures, energies Hartree -> eV, forces Hartree/Å -> eV/Å",
        "set.xyz: read by ASE, 3 structures, energies eV, forces eV/Å",
    )
    some = read_inputs(paths, [1], ids=["set/2", "CH4/3", "ani/1"])[0]
    assert some.ids.tolist() == ["CH4/3", "ani/1", "set/2"]


def test_databases_are_read_as_by_read_databases(folder: Path):
    paths = [folder / "H2O.db", folder / "CH4.db"]
    for name, a, b in zip(
        Structures._fields, read_inputs(paths, [1], ["name1"])[0], read_databases(paths, [1], ["name1"]), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("name", ["CH4.db", "ani.h5", "set.xyz"])
def test_a_level_without_any_energy_is_refused(folder: Path, name: str):
    with pytest.raises(DataError, match=rf"energies, got none at level 5 and some at 1; the files hold {name}: "):
        read_inputs([folder / name], [5, 1])
    both = [folder / "CH4.db", folder / "H2O.db"]
    with pytest.raises(DataError, match=r"none at level 0, 5 and some at 1; .* 4 at fidelity 1.* 3 at fidelity 1"):
        read_inputs(both, [5, 0, 1])


def test_databases_without_a_level_are_counted(folder: Path, make_structures: Callable[..., Structures]):
    structures = make_structures(["CO"] * 5, 3, (0, 1))
    structures.energies[2:, 0] = np.nan
    write_database(folder / "CO.db", structures, {0: "low", 1: "high"})
    _, (line,) = read_inputs([folder / "CO.db"], [0])
    assert line == ("CO.db: PyKinML database, 2 structures, energies eV, forces eV/Å, 3 without energies left out")
    _, (line,) = read_inputs([folder / "CO.db"], [0], ids=["CO/1"])
    assert "left out" not in line, "what the filters leave out is not counted"


def test_the_content_decides_and_not_the_name(folder: Path):
    (folder / "set.xyz").rename(folder / "H2O.second.db")
    (folder / "ani.h5").rename(folder / "other.db")
    assert input_format(folder / "H2O.second.db") == "ase"
    assert input_format(folder / "other.db") == "ani"


@pytest.mark.parametrize(
    ("name", "forced", "message"),
    [
        (
            "CH4.db",
            "ani",
            r"CH4\.db must be ani \(ANI HDF5\), as input_type says, got sqlite \(PyKinML database\); leave",
        ),
        ("ani.h5", "aev", r"ani\.h5 must be aev .*, got ani \(ANI HDF5\)"),
        ("set.xyz", "sqlite", r"set\.xyz must be sqlite .* got ase \(read by ASE\)"),
        ("CH4.db", "ase", r"CH4\.db must be ase"),
    ],
)
def test_a_forced_type_must_be_true(folder: Path, name: str, forced: str, message: str):
    assert read_inputs([folder / name], [1], input_type=input_format(folder / name))[0].n_structures
    with pytest.raises(DataError, match=message):
        read_inputs([folder / name], [1], input_type=forced)


def test_hdf5_of_something_else_is_refused(tmp_path: Path):
    with h5py.File(tmp_path / "weather.h5", "w") as file:
        file["rain/coordinates"], file["sun"] = [1.0, 2.0], 3.0
    with pytest.raises(DataError, match=r"weather\.h5 must be HDF5 of PyKinML .* or of ANI .*, got rain, sun"):
        input_format(tmp_path / "weather.h5")


def test_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "set.xyz").touch()
    with pytest.raises(DataError, match=r"set\.xyz must hold at least one structure, got an empty file"):
        read_inputs([tmp_path / "set.xyz"], [1])


@pytest.mark.parametrize("content", [b"nothing of use\n", b"SQLite format 3\0" + b"\1" * 2000])
def test_what_nobody_reads_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "CH4.db").write_bytes(content)
    with pytest.raises(DataError, match=r"CH4\.db must be in a format that ASE reads .*, or a PyKinML database"):
        read_inputs([tmp_path / "CH4.db"], [1])


def test_inputs_are_found_by_path_and_glob(folder: Path):
    both = [folder / "CH4.db", folder / "H2O.db"]
    assert find_inputs([str(folder / "*.db")]) == both
    assert find_inputs([str(both[1]), str(folder / "*.db"), str(both[0])]) == both
    with pytest.raises(DataError, match=r"no file matches .*\*\.sqlite"):
        find_inputs([str(both[0]), str(folder / "*.sqlite")])
    with pytest.raises(DataError, match="at least one file"):
        find_inputs([])


def test_a_path_may_look_like_a_glob(folder: Path):
    (folder / "set[1]").mkdir()
    (folder / "CH4.db").rename(folder / "set[1]" / "CH4.db")
    assert find_inputs([str(folder / "set[1]" / "CH4.db")]) == [folder / "set[1]" / "CH4.db"]


def test_a_file_named_twice_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    assert find_inputs(["CH4.db", str(folder / "CH4.db"), "C*.db"]) == [Path("CH4.db")]
    assert find_inputs(["./*.db", str(folder / "*.db")]) == [Path("CH4.db"), Path("H2O.db")]


def test_a_folder_is_no_input(folder: Path):
    with pytest.raises(DataError, match=r"which is a folder; give '.*/\*\.db'"):
        find_inputs([str(folder)])


@pytest.mark.parametrize(("original", "name"), [("H2O.db", "more/CH4.db"), ("set.xyz", "CH4.xyz")])
def test_a_label_may_not_come_twice(folder: Path, original: str, name: str):
    (folder / "more").mkdir()
    (folder / original).rename(folder / name)
    with pytest.raises(DataError, match=r"must differ in their names before the suffix, .*CH4\.db and .*CH4\.|CH4\.db"):
        find_inputs([str(folder / "**/*.*")])
    (folder / name).rename(folder / "more" / "CH4.second.db")
    assert {path.name for path in find_inputs([str(folder / "**/*.db")])} >= {"CH4.db", "CH4.second.db"}


def test_structures_of_every_format_are_there_for_prediction(folder: Path, water: Structures):
    with h5py.File(folder / "ani.h5", "a") as file:
        del file["water/energies"]
    shutil.copyfile(folder / "set.xyz", folder / "copy.extxyz")
    for name in ("H2O.db", "ani.h5", "copy.extxyz"):
        images = read_structures([folder / name])
        assert [atoms.get_chemical_formula() for atoms in images] == ["H2O"] * 3
        positions = np.concatenate([atoms.positions for atoms in images])
        np.testing.assert_allclose(positions, water.positions, rtol=0, atol=1e-8)


def test_structures_carry_the_labels_of_a_level(folder: Path, make_structures: Callable[..., Structures]):
    structures = make_structures(["CO"] * 3, 3, (0, 1))
    structures.energies[0, 0], structures.forces[2:4, 0] = np.nan, np.nan
    write_database(folder / "CO.db", structures, {0: "low", 1: "high"})
    images = read_structures([folder / "CO.db"], level=0)
    assert [atoms.info["id"] for atoms in images] == ["CO/2", "CO/3"]
    assert [atoms.get_potential_energy() for atoms in images] == structures.energies[1:, 0].tolist()
    assert "forces" not in images[0].calc.results
    np.testing.assert_array_equal(images[1].get_forces(), structures.forces[4:, 0])
