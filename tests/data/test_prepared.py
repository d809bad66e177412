"""Prepared sets: reused when, and only when, the same data and settings made them; whole or absent."""

from __future__ import annotations

import json
import mmap
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from pykinml_func import aev_jacobians, aevs
from pykinml_func.config import AEVConfig, DataConfig
from pykinml_func.data import prepared as module
from pykinml_func.data.featurize import jacobian_shape, pair_offsets
from pykinml_func.data.formats.database import read_databases, write_database
from pykinml_func.data.prepared import PreparedSet, complete, open_prepared
from pykinml_func.data.preparing import making, pieces
from pykinml_func.errors import ConfigError, DataError
from pykinml_func.types import Structures

AEV = AEVConfig(n_radial=3, n_angular_radial=2, n_angular=2)
BACKEND_TOLERANCE = 1e-10  # 1/Å; AEVs agree to 1e-12, Jacobians to 1e-10

Opener = Callable[..., PreparedSet]


@pytest.fixture
def folder(tmp_path: Path, make_structures: Callable[..., Structures]) -> Path:
    write_database(tmp_path / "CH4.db", make_structures(["CH4"] * 5, 1, (0, 1)), {0: "low", 1: "high"})
    write_database(tmp_path / "H2O.db", make_structures(["H2O"] * 3, 2, (0, 1)), {0: "low", 1: "high"})
    return tmp_path


@pytest.fixture
def opened(folder: Path) -> Opener:
    """Opens the prepared set of the folder's databases, with some settings changed."""

    def prepare(
        aev: AEVConfig = AEV, precision: str = "float64", featurizing: Any = lambda *_: lambda _: None, **changed: Any
    ) -> PreparedSet:
        settings = {"input": (str(folder / "*.db"),), "prepared": folder / "prepared", **changed}
        return open_prepared(DataConfig(**settings), aev, precision, featurizing)

    return prepare


def computed(prepared: PreparedSet, contents: module.Contents) -> list[tuple[str, int, int]]:
    """What `complete` computes: name, structures announced, structures done."""
    heard: list[list[Any]] = []

    def featurizing(name: str, number: int) -> Callable[[int], None]:
        heard.append([name, number, 0])

        def advance(done: int) -> None:
            heard[-1][2] += done

        return advance

    complete(prepared, contents, featurizing)
    return [(name, number, done) for name, number, done in heard]


@pytest.mark.usefixtures("either_aevs")
def test_a_set_holds_the_structures_and_their_aevs(folder: Path, opened: Opener, make_dense: Callable[..., np.ndarray]):
    prepared = opened()
    assert prepared.aev.elements == ("C", "H", "O")
    expected = read_databases([folder / "CH4.db", folder / "H2O.db"], [1])
    for name, a, b in zip(Structures._fields, prepared.structures, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    complete(prepared, "jacobians")
    starts = pair_offsets(expected.sizes)
    assert isinstance(prepared.jacobians, np.memmap)
    assert prepared.jacobians.shape == jacobian_shape(prepared.aev, expected.sizes)
    for m, (a, b) in enumerate(zip(expected.offsets[:-1], expected.offsets[1:], strict=True)):
        species = torch.tensor([{6: 0, 1: 1, 8: 2}[z] for z in expected.numbers[a:b].tolist()])
        arguments = (prepared.aev, species, torch.from_numpy(expected.positions[a:b]))
        np.testing.assert_allclose(prepared.aevs[a:b], aevs(*arguments), rtol=0, atol=BACKEND_TOLERANCE)
        jacobian = make_dense(prepared.aev, species.numpy(), prepared.jacobians[starts[m] : starts[m + 1]])
        np.testing.assert_allclose(jacobian, aev_jacobians(*arguments), rtol=0, atol=BACKEND_TOLERANCE)


def test_the_same_is_reused_and_computed_once(opened: Opener):
    first = opened()
    assert not first.reused
    assert computed(first, "structures") == []
    assert computed(first, "aevs") == [("aevs", 8, 8)]
    assert computed(first, "jacobians") == [("jacobians", 8, 8)]
    before = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    again = opened()
    assert again.reused
    assert again.path == first.path
    assert computed(again, "jacobians") == computed(again, "aevs") == []
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == before


CHANGES: dict[str, dict[str, Any]] = {
    "fidelity": {"fidelity": 0},
    "levels": {"fidelity": 1, "low_fidelity": (0,), "multi_fidelity": True},
    "their order": {"fidelity": 0, "low_fidelity": (1,), "multi_fidelity": True},
    "names": {"names": ("name0",)},
    "temperature": {"temperature": 300.0},
    "one database": {"input": None},
    "split file": {"split_files": None, "split": (3, 1, 0)},
    "backend": {"aev_backend": "aevmod"},
    "precision": {"precision": "float32"},
    "beta": {"aev": {"beta": 1.0}},
    "radial cutoff": {"aev": {"radial_cutoff": 5.0}},
    "angular cutoff": {"aev": {"angular_cutoff": 3.5}},
    "radial shells": {"aev": {"n_radial": 4}},
    "angular shells": {"aev": {"n_angular_radial": 3}},
    "sections": {"aev": {"n_angular": 3}},
    "zeta": {"aev": {"zeta": 14.1}},
    "eta": {"aev": {"radial_eta": 16.0}},
    "shifts": {"aev": {"radial_shifts": (1.0, 2.0, 3.0)}},
    "prefactor": {"aev": {"angular_prefactor": 2.0}},
    "elements": {"aev": {"elements": ("H", "O", "C")}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_setting_makes_another_set(folder: Path, opened: Opener, what: str):
    changed = dict(CHANGES[what])
    if "input" in changed:
        changed["input"] = (str(folder / "CH4.db"),)
    if "split_files" in changed:
        (folder / "tvt.txt").write_text("CH4/1 2\nCH4/2 2\nH2O/1 2\nH2O/2 2\nCH4/4 -1\n")
        changed["split_files"] = (str(folder / "tvt.txt"),)
    if "aev" in changed:
        changed["aev"] = AEVConfig(**{"n_radial": 3, "n_angular_radial": 2, "n_angular": 2, **changed["aev"]})
    first, other = opened(), opened(**changed)
    assert other.path != first.path
    assert not other.reused
    assert opened(**changed).reused
    assert opened().reused, "the first set must stay"


def test_what_does_not_shape_the_data_is_no_other_set(opened: Opener):
    first = opened()
    assert opened(split=(0.5, 0.5), fit_self_energies=False).path == first.path
    assert opened(names=()).path == first.path
    assert opened(input_type="sqlite").path == first.path
    assert opened(workers=3).path == first.path
    assert opened(names=("a%", "name%")).path == opened(names=("name%", "a%")).path
    assert opened(aev=AEV.model_copy(update={"elements": ("C", "H", "O")})).path == first.path, "a rerun names them"


def test_given_elements_may_be_more_than_those_of_the_data(opened: Opener):
    first, given = opened(), AEV.model_copy(update={"elements": ("C", "H", "N", "O")})
    more = opened(aev=given)
    assert more.path != first.path
    assert more.aev.elements == given.elements
    assert opened(aev=given).path == more.path
    assert opened().aev.elements == ("C", "H", "O")


def test_elements_follow_the_filters(folder: Path, opened: Opener):
    (folder / "tvt.txt").write_text("H2O/1 2\nH2O/2 2\n")
    assert opened(split_files=(str(folder / "tvt.txt"),), split=(1, 1, 0)).aev.elements == ("H", "O")


def test_a_reused_set_reads_no_input(folder: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch):
    atoms = Atoms("NH", [[0, 0, 0], [0, 0, 1.04]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1500.0, forces=np.ones((2, 3)))
    ase.io.write(folder / "radicals.extxyz", [atoms] * 2)
    iread, reads = ase.io.iread, []
    monkeypatch.setattr(ase.io, "iread", lambda path, **named: reads.append(path) or iread(path, **named))
    given = {"input": (str(folder / "radicals.extxyz"),)}
    opened(**given)
    assert len(reads) == 1, "once to make the set"
    again = opened(**given)
    assert (len(reads), again.reused, again.aev.elements) == (1, True, ("H", "N"))


def test_inputs_are_hashed_in_pieces(opened: Opener, monkeypatch: pytest.MonkeyPatch):
    def whole(path: Path) -> bytes:
        raise AssertionError(f"{path} is read into memory")

    monkeypatch.setattr(Path, "read_bytes", whole)
    assert opened().path == opened().path


@pytest.mark.parametrize("changed", [{"low_fidelity": (5,), "delta": True}, {"aev_backend": "aevmod"}])
def test_what_is_refused_leaves_no_set(folder: Path, opened: Opener, changed: dict[str, Any]):
    aev = AEV.model_copy(update={"zeta": 14.1}) if "aev_backend" in changed else AEV
    with pytest.raises(
        (ConfigError, DataError), match=r"none at level 5 and some at 1|its own rule, got others \(zeta\)"
    ):
        opened(aev=aev, **changed)
    assert not (folder / "prepared").exists()


@pytest.mark.parametrize("inside", ["", "deeper/still"])
@pytest.mark.parametrize("pre_saved", [False, True])
def test_prepared_must_be_a_directory(tmp_path: Path, opened: Opener, inside: str, pre_saved: bool):
    (tmp_path / "afile").touch()
    given = {"pre_saved": True, "input": ()} if pre_saved else {}
    with pytest.raises(ConfigError, match=r"must be a directory, got .*afile.*, and .*afile is a file; name another"):
        opened(prepared=tmp_path / "afile" / inside, **given)


def test_a_set_holds_the_labels_of_all_levels(folder: Path, opened: Opener):
    delta = {"low_fidelity": (0,), "delta": True}
    prepared = opened(**delta)
    expected = read_databases([folder / "CH4.db", folder / "H2O.db"], [0, 1])
    for again in (prepared, opened(**delta)):
        for name, a, b in zip(Structures._fields, again.structures, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert opened(low_fidelity=(0,), multi_fidelity=True).path == prepared.path, "what they are for is no matter"


def test_marks_and_sources_stay_with_the_set(folder: Path, opened: Opener):
    marks = {"CH4/1": 2, "CH4/2": -1, "H2O/3": 2}
    (folder / "tvt.txt").write_text("".join(f"{name} {mark}\n" for name, mark in marks.items()))
    given = {"split_files": (str(folder / "tvt.txt"),), "split": (1, 1, 0)}
    for _ in range(2):
        prepared = opened(**given)
        assert prepared.structures.ids.tolist() == list(marks)
        assert prepared.marks == marks
        assert prepared.sources == (
            "CH4.db: PyKinML database, 2 structures, energies eV, forces eV/Å",
            "H2O.db: PyKinML database, 1 structures, energies eV, forces eV/Å",
        )
    assert opened().marks is None
    (folder / "tvt.txt").write_text("CH4/1 2\nCH4/2 2\nH2O/3 -1\n")
    assert opened(**given).path != prepared.path


def test_sources_of_several_formats_make_one_set(folder: Path, opened: Opener):
    atoms = Atoms("NH", [[0, 0, 0], [0, 0, 1.04]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1500.0, forces=np.ones((2, 3)))
    ase.io.write(folder / "radicals.extxyz", [atoms] * 2)
    both = {"input": (str(folder / "H2O.db"), str(folder / "radicals.extxyz"))}
    prepared = opened(**both)
    assert prepared.aev.elements == ("H", "N", "O")
    assert prepared.structures.ids.tolist() == ["H2O/1", "H2O/2", "H2O/3", "radicals/1", "radicals/2"]
    assert len(prepared.sources) == 2
    assert opened(**both).reused


def test_a_changed_database_makes_another_set(folder: Path, opened: Opener):
    first = opened()
    with closing(sqlite3.connect(folder / "CH4.db")) as connection, connection:
        connection.execute("UPDATE energy SET E = E + 1e-9 WHERE xyz_id = 2 AND fidelity = 1")
    other = opened()
    assert other.path != first.path
    difference = other.structures.energies[:, 0] - first.structures.energies[:, 0]
    assert np.flatnonzero(difference).tolist() == [1]


def test_the_same_data_elsewhere_is_reused(folder: Path, opened: Opener, tmp_path_factory: pytest.TempPathFactory):
    first, elsewhere = opened(), tmp_path_factory.mktemp("copy")
    for name in ("CH4.db", "H2O.db"):
        shutil.copyfile(folder / name, elsewhere / name)
    again = opened(input=(str(elsewhere / "H2O.db"), str(elsewhere / "CH4.db")))
    assert again.reused
    assert again.path == first.path


@pytest.mark.parametrize("how", ["a bit", "cut short", "emptied"])
def test_a_corrupted_array_is_noticed(opened: Opener, how: str):
    path = opened().path / "energies.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"a bit": content, "cut short": content[:-8], "emptied": b""}[how])
    with pytest.raises(DataError, match=r"energies.npy is not what was written there; delete .* and run again"):
        opened()


def test_what_a_write_ahead_log_holds_counts(folder: Path, opened: Opener):
    connection = sqlite3.connect(folder / "CH4.db")
    with closing(connection):
        connection.execute("PRAGMA journal_mode=WAL")
        first = opened()
        with connection:
            connection.execute("UPDATE energy SET E = E + 1")
        other = opened()
        assert (folder / "CH4.db-wal").stat().st_size > 0
    np.testing.assert_allclose(other.structures.energies[:5], first.structures.energies[:5] + 1)


@pytest.mark.parametrize("name", ["positions.npy", "manifest.json"])
def test_a_set_that_lacks_a_file_is_told_or_made_again(opened: Opener, name: str):
    prepared = opened()
    (prepared.path / name).unlink()
    if name == "manifest.json":
        assert not opened().reused
    else:
        with pytest.raises(DataError, match=r"positions.npy is not what was written there"):
            opened()


@pytest.mark.parametrize("how", ["a bit", "cut short", "zeros"])
@pytest.mark.parametrize("name", ["aevs", "jacobians"])
def test_features_that_were_damaged_are_noticed(opened: Opener, name: str, how: str):
    prepared = opened()
    complete(prepared, "jacobians")
    path = prepared.path / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    changed = {"a bit": content, "cut short": content[:-8], "zeros": content[:128] + bytes(len(content) - 128)}
    path.write_bytes(changed[how])
    with pytest.raises(DataError, match=rf"{name}.npy is not what was written there"):
        getattr(opened(), name)


def test_what_is_opened_stays_on_disk(opened: Opener):
    for prepared in (opened(), opened()):
        for name, array in prepared.structures._asdict().items():
            base = array
            while isinstance(base, np.ndarray):
                base = base.base
            assert isinstance(base, mmap.mmap), name
            assert not array.flags.writeable, name


def test_reading_is_heard_of(folder: Path, opened: Opener, make_structures: Callable[..., Structures]):
    structures = make_structures(["CO"] * 4)
    structures.energies[2] = np.nan
    write_database(folder / "CO.db", structures, {1: "high"})
    heard: list[Any] = []

    def featurizing(name: str, number: int) -> Callable[[int], None]:
        heard.append((name, number))
        return heard.append

    for _ in range(2):
        opened(featurizing=featurizing)
    assert heard[0] == ("structures", 12), "one without energies too; told once, since the set is reused"
    assert sum(heard[1:]) == 12


def test_an_interrupted_computation_is_continued(opened: Opener):
    prepared = opened()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(prepared, "aevs", lambda *_: interrupt)
    assert not (prepared.path / "aevs.npy").exists()
    assert computed(opened(), "aevs") == [("aevs", 8, 8)]
    assert {path.suffix for path in prepared.path.iterdir()} == {".npy", ".json", ".crc32"}


def test_an_interrupted_start_is_continued(folder: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            opened()
    assert not (folder / "prepared").exists()
    with monkeypatch.context() as patch:
        patch.setattr(making, "join_pieces", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            opened()
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "write_piece", lambda *_: pytest.fail("a piece was read again"))
        assert not opened().reused
    assert len(list((folder / "prepared").iterdir())) == 1


def test_a_full_disk_is_told_beforehand(opened: Opener, monkeypatch: pytest.MonkeyPatch):
    prepared = opened()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(DataError, match=r"aevs.npy needs .* GiB and the disk has .* free; choose another directory"):
        complete(prepared, "aevs")


def test_both_backends_agree(opened: Opener):
    native, by_aevmod = opened(), opened(aev_backend="aevmod")
    for prepared in (native, by_aevmod):
        complete(prepared, "jacobians")
    np.testing.assert_allclose(native.aevs, by_aevmod.aevs, rtol=0, atol=BACKEND_TOLERANCE)
    np.testing.assert_allclose(native.jacobians, by_aevmod.jacobians, rtol=0, atol=BACKEND_TOLERANCE)


def test_single_precision_is_the_rounded_double(opened: Opener):
    double, single = opened(), opened(precision="float32")
    for prepared in (double, single):
        complete(prepared, "jacobians")
    np.testing.assert_array_equal(single.aevs, double.aevs.astype(np.float32))
    np.testing.assert_array_equal(single.jacobians, double.jacobians.astype(np.float32))
    assert single.structures.positions.dtype == single.structures.energies.dtype == np.float64
