"""PyKinML's HDF5: what its own writer wrote of a database is read as the database is."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from pykinml_func.data.formats import hdf5
from pykinml_func.data.formats.database import read_databases, write_database
from pykinml_func.data.formats.hdf5 import hdf5_count
from pykinml_func.data.formats.rows import Query
from pykinml_func.data.formats.sources import read_inputs
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

handler = pytest.importorskip("pykinml.hdf5_handler")
pes = pytest.importorskip("pykinml.data")

Write = Callable[..., Any]


@pytest.fixture
def database(tmp_path: Path, make_structures: Callable[..., Structures]) -> Path:
    """A folder of two databases, the atoms of which are not sorted by element."""
    for formula, number in (("CH3OH", 4), ("HCO", 3)):
        write_database(tmp_path / f"{formula}.db", make_structures([formula] * number, number), {1: "made up"})
    return tmp_path


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Write:
    """PyKinML's way from databases to a file of AEVs: (pattern, file, whether forces are packed,
    elements) -> its data object."""
    monkeypatch.setattr(handler, "time", time, raising=False)  # its writers call time.time and import no time

    def aev_file(pattern: Path, out: Path, forces: bool = True, elements: Sequence[str] = "CHO") -> Any:
        data = pes.Data_pes(list(elements))
        data.get_data(
            Namespace(
                input_data_type="sqlite",
                input_data_fname=str(pattern),
                present_elements=list(elements),
                aev_params=[4, 2, 2],
                cuttoff_radius=[5.2, 3.8],
                beta=0.95,
                temp=None,
                nameset=None,
                delta=False,
                wrf=forces,
                wrw=None,
            )
        )
        data.tvtmsk = np.ones(data.ndat, dtype=int)
        handler.pack_data(data)
        handler.write_aev_db_hdf(data, str(out))
        capsys.readouterr()  # PyKinML prints much
        return data

    return aev_file


def write_pca(data: Any, out: Path) -> None:
    """PyKinML's file of projected AEVs; h5py 2 made text of what it was given, h5py 3 wants text."""
    data.meta = [[str(value) for value in row] for row in data.meta]
    data.full_symb_data = [str(symbols) for symbols in data.full_symb_data]
    basis = SimpleNamespace(mean_=np.zeros(3), components_=np.eye(3), explained_variance_=np.ones(3))
    pca = SimpleNamespace(pevthr=0.9, npc=3, ncomp=[3] * 3, natot=len(data.xp), Xpca=[basis] * 3)
    handler.write_pca_aev_db_hdf(data, str(out), pca)


def assert_same(found: Structures, expected: Structures, *others: str) -> None:
    """Equal but for ids and temperatures, which these files do not hold, and for `others`."""
    for name in set(Structures._fields) - {"ids", "temperatures", *others}:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def by_pykinml_order(folder: Path, data: Any) -> Structures:
    """The databases' structures in the order that PyKinML globbed them."""
    files = list(dict.fromkeys(f"{row[6].split('/')[0]}.db" for row in data.meta))
    return read_databases([folder / name for name in files], [1])


@pytest.mark.parametrize("pattern", ["*.db", "CH3OH.db"])  # mixed sizes are stored otherwise than even ones
def test_aev_files_hold_what_their_databases_hold(database: Path, write: Write, pattern: str):
    data = write(database / pattern, database / "aevs.h5")
    expected = by_pykinml_order(database, data)
    found, lines = read_inputs([database / "aevs.h5"], [1])
    assert_same(found, expected)
    assert found.ids.tolist() == [f"aevs/{k}" for k in range(1, expected.n_structures + 1)]
    assert np.isnan(found.temperatures).all()
    assert lines == (
        f"aevs.h5: PyKinML HDF5 of AEVs, {expected.n_structures} structures, energies eV, forces eV/Å, AEVs of "
        f"{data.xx.shape[1]} values computed anew",
    )


def test_pykinml_reads_the_same(database: Path, write: Write, capsys: pytest.CaptureFixture[str]):
    write(database / "*.db", database / "aevs.h5")
    found, _ = read_inputs([database / "aevs.h5"], [1])
    theirs = pes.Data_pes()
    handler.read_aev_db_hdf(theirs, str(database / "aevs.h5"))
    capsys.readouterr()
    np.testing.assert_array_equal(found.energies, theirs.yy)
    np.testing.assert_array_equal(found.positions, theirs.xp)
    np.testing.assert_array_equal(found.forces[:, 0].reshape(-1), np.concatenate(theirs.ff[:, 0]))
    assert found.names.tolist() == [row[1] for row in theirs.meta]


def test_forces_that_were_not_packed_are_those_of_the_source(database: Path, write: Write):
    data = write(database / "CH3OH.db", database / "aevs.h5", forces=False)
    with h5py.File(database / "aevs.h5", "a") as file:
        assert len(file["Base_Group/ff"]) == 4, "PyKinML writes what was in memory"
        file["Base_Group/ff"][:, 0] = np.full((4, 18), 7.0)
    found, _ = read_inputs([database / "aevs.h5"], [1])
    assert_same(found, by_pykinml_order(database, data))
    with h5py.File(database / "aevs.h5", "a") as file:
        del file["Base_Group/met_f"]
    found, lines = read_inputs([database / "aevs.h5"], [1])
    assert np.isnan(found.forces).all()
    assert "no forces" in lines[0]


def test_an_ff_of_one_structure_may_be_whatever_was_in_memory(tmp_path: Path, write: Write, make_structures: Any):
    write_database(tmp_path / "HCO.db", make_structures(["HCO"]), {1: "made up"})
    write(tmp_path / "HCO.db", tmp_path / "aevs.h5", forces=False)
    with h5py.File(tmp_path / "aevs.h5", "a") as file:
        assert len(file["Base_Group/ff"]) == 1
        del file["Base_Group/met_f"]
    found, lines = read_inputs([tmp_path / "aevs.h5"], [1])
    assert np.isnan(found.forces).all()
    assert "no forces" in lines[0]


def test_older_files_have_forces_in_ff_alone(database: Path, write: Write):
    data = write(database / "*.db", database / "aevs.h5")
    with h5py.File(database / "aevs.h5", "a") as file:
        del file["Base_Group/met_f"], file["Base_Group/met_s"]
    found, _ = read_inputs([database / "aevs.h5"], [1])
    assert_same(found, by_pykinml_order(database, data), "names")
    assert set(found.names) == {""}


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("pattern", ["*.db", "CH3OH.db"])
@pytest.mark.parametrize("alone", [False, True])
def test_files_are_read_in_parts(
    database: Path, write: Write, monkeypatch: pytest.MonkeyPatch, pattern: str, most: int, alone: bool
):
    write(database / pattern, database / "aevs.h5")
    if alone:
        with h5py.File(database / "aevs.h5", "a") as file:
            del file["Base_Group/met_f"]
    whole, lines = read_inputs([database / "aevs.h5"], [1])
    monkeypatch.setattr(hdf5, "BLOCK_ROWS", most)
    found, again = read_inputs([database / "aevs.h5"], [1])
    assert again == lines and "no forces" not in lines[0]
    assert hdf5_count(database / "aevs.h5", Query()) == whole.n_structures
    assert_same(found, whole)
    assert found.ids.tolist() == whole.ids.tolist()


def test_pca_files_hold_geometries_and_energies(database: Path, write: Write):
    data = write(database / "*.db", database / "aevs.h5")
    expected = by_pykinml_order(database, data)
    write_pca(data, database / "projected.h5")
    found, lines = read_inputs([database / "projected.h5"], [1])
    assert_same(found, expected, "forces")
    assert np.isnan(found.forces).all()
    assert lines[0].startswith("projected.h5: PyKinML HDF5 of projected AEVs, 7 structures, energies eV, no forces, ")


def test_labels_belong_to_the_last_level(database: Path, write: Write):
    write(database / "HCO.db", database / "aevs.h5")
    low = read_databases([database / "HCO.db"], [1])
    write_database(database / "CHO.db", low._replace(numbers=np.tile([6, 1, 8], 3), levels=np.array([0])), {0: "low"})
    found, _ = read_inputs([database / "aevs.h5", database / "CHO.db"], [0, 2])
    assert found.levels.tolist() == [0, 2]
    np.testing.assert_array_equal(np.isnan(found.energies), [[True, False]] * 3 + [[False, True]] * 3)


def test_filters(database: Path, write: Write):
    write(database / "CH3OH.db", database / "aevs.h5")
    found, _ = read_inputs([database / "aevs.h5"], [1], names=["name0"], ids=["aevs/4", "aevs/1"])
    assert found.ids.tolist() == ["aevs/1", "aevs/4"]
    with pytest.raises(DataError, match=r"temperature 300\); the files hold aevs.h5: 4 structures, .* no temperatures"):
        read_inputs([database / "aevs.h5"], [1], temperature=300.0)


def test_the_real_database_comes_through(shared: Path, tmp_path: Path, write: Write):
    data = write(shared / "data" / "C2H?.db", tmp_path / "aevs.h5", elements="CH")
    found, _ = read_inputs([tmp_path / "aevs.h5"], [1])
    assert_same(found, by_pykinml_order(shared / "data", data))


def change_xp(group: h5py.Group) -> None:
    group["xp"][7] = group["xp"][6]


def drop(name: str) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[name]

    return change


def replace(name: str, values: Any) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[name]
        group[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_xp, "structure 2, positions must have its atoms at least .* got atoms 0 and 1"),
        (drop("xp"), "must hold symbols, xip, xfp, xp, yy in Base_Group, got none of xp"),
        (replace("yy", [1.0, 2.0]), "its ndat, 4, got 4, 4, 4 and 2"),
        (
            replace("yy", np.full((4, 1), np.inf)),
            "structure 1, energy at level 1 must be a finite number of eV, got inf",
        ),
        (replace("symbols", np.ones((4, 6))), "cannot be read"),
        (replace("xfp", [6, 12, 18, 23]), "structure 4, positions must be 6 x 3 finite numbers"),
    ],
)
def test_broken_files_are_refused(database: Path, write: Write, change: Callable[[h5py.Group], None], message: str):
    path = database / "aevs.h5"
    write(database / "CH3OH.db", path)
    with h5py.File(path, "a") as file:
        change(file["Base_Group"])
    with pytest.raises(DataError, match=rf"aevs\.h5.*{message}"):
        read_inputs([path], [1])


def test_a_file_cut_short_is_refused(database: Path, write: Write):
    path = database / "aevs.h5"
    write(database / "CH3OH.db", path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"aevs.h5 cannot be read: .*truncated"):
        read_inputs([path], [1])
