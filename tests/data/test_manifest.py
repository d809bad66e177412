"""Pre-saved sets: the directory alone is enough, and what contradicts it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pykinml_func.config.aev import AEVConfig
from pykinml_func.config.data import DataConfig
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.manifest import FORMAT
from pykinml_func.data.prepared import PreparedSet, complete, open_prepared
from pykinml_func.errors import ConfigError, DataError
from pykinml_func.types import Structures

AEV = AEVConfig(n_radial=3, n_angular_radial=2, n_angular=2, beta=0.9)


@pytest.fixture
def made(tmp_path: Path, make_structures: Callable[..., Structures]) -> PreparedSet:
    """A set of two levels, its AEVs and marks, and nothing else of what made it."""
    folder = tmp_path / "there"
    folder.mkdir()
    write_database(folder / "CH4.db", make_structures(["CH4"] * 6, 1, (0, 1)), {0: "low", 1: "high"})
    (folder / "tvt.txt").write_text("CH4/1 2\nCH4/2 2\nCH4/3 2\nCH4/5 -1\n")
    data = DataConfig(
        input=(str(folder / "*.db"),),
        low_fidelity=(0,),
        multi_fidelity=True,
        names=("name%",),
        split_files=(str(folder / "tvt.txt"),),
        split=(2, 1, 0),
        prepared=folder / "prepared",
        aev_backend="aevmod",
    )
    prepared = open_prepared(data, AEV, "float32")
    complete(prepared, "aevs")
    (tmp_path / "here").mkdir()
    moved = tmp_path / "here" / prepared.path.name
    prepared.path.rename(moved)
    found = prepared._replace(path=moved)
    shutil.rmtree(folder)
    return found


def reopen(path: Path, aev: AEVConfig | None = None, precision: str = "float64", **given: Any) -> PreparedSet:
    return open_prepared(DataConfig(pre_saved=True, prepared=path, **given), aev or AEVConfig(), precision)


def test_the_directory_alone_is_enough(made: PreparedSet):
    for path in (made.path, made.path.parent):
        found = reopen(path)
        for name, a, b in zip(Structures._fields, found.structures, made.structures, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
        np.testing.assert_array_equal(found.aevs, made.aevs)
        assert (found.path, found.reused, found.sources) == (made.path, True, made.sources)
        assert (found.aev, found.backend, found.precision) == (made.aev, "aevmod", "float32")
        assert found.marks == {"CH4/1": 2, "CH4/2": 2, "CH4/3": 2, "CH4/5": -1}
        assert (found.data.fidelity, found.data.names, found.data.aev_backend) == (1, ("name%",), "aevmod")
    complete(found, "jacobians")
    assert found.jacobians.dtype == np.float32


def test_what_agrees_may_be_given(made: PreparedSet):
    aev = AEVConfig(elements=("C", "H"), n_radial=3, beta=0.9)
    found = reopen(
        made.path,
        aev,
        low_fidelity=(0,),
        fidelity=1,
        delta=True,
        names=("name%",),
        temperature=None,
        aev_backend="aevmod",
    )
    assert found.aev == made.aev
    assert found.data.levels == (0, 1)
    assert reopen(made.path, made.aev).aev == made.aev
    assert reopen(made.path, fidelity=0).data.levels == (0,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fidelity": 2}, "levels of fidelity and low_fidelity must be among .*, got 2, and .* has 0, 1; leave it out"),
        ({"low_fidelity": (2,), "delta": True}, "levels .* got 2, 1, and .* has 0, 1"),
        ({"names": ("name1",)}, "names must .* got name1, and .* has name%"),
        ({"temperature": 300.0}, "temperature must .* got 300.0, and .* has any"),
        ({"aev_backend": "native"}, "aev_backend must .* got native, and .* has aevmod"),
        ({"aev": AEVConfig(beta=0.95)}, "beta must .* got 0.95, and .* has 0.9"),
        ({"aev": AEVConfig(n_radial=16)}, "n_radial must .* got 16, and .* has 3"),
        ({"aev": AEVConfig(zeta=14.1)}, "zeta must .* got 14.1, and .* has 8.0"),
        ({"aev": AEVConfig(elements=("H", "C"))}, "elements must .* got H, C, and .* has C, H"),
    ],
)
def test_what_contradicts_the_set_is_refused(made: PreparedSet, given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        reopen(made.path, **given)


def test_split_files_mark_structures_of_the_set(made: PreparedSet, tmp_path: Path):
    (tmp_path / "tvt.txt").write_text("CH4/1 -1\nCH4/3 2\n")
    split = {"split_files": (str(tmp_path / "tvt.txt"),), "split": (1, 0, 0)}
    assert reopen(made.path, **split).marks == {"CH4/1": -1, "CH4/2": 0, "CH4/3": 2, "CH4/5": 0}
    (tmp_path / "tvt.txt").write_text("CH4/1 -1\nCH4/4 2\n")
    with pytest.raises(ConfigError, match=r"got CH4/4 \(1 of 2\), and .* has CH4/1, CH4/2, CH4/3, CH4/5 \(4 in all\)"):
        reopen(made.path, **split)


def test_one_set_must_be_there(made: PreparedSet, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"needs a prepared set in .*, got none; make one with `pykinml prepare`"):
            reopen(path)
    shutil.copytree(made.path, made.path.parent / "other")
    with pytest.raises(DataError, match=r"got 2: .*\(CH4; levels 0, 1; aevmod, float32\); .*other \(CH4;.*--prepared"):
        reopen(made.path.parent)
    assert reopen(made.path.parent / "other").structures.n_structures == 4


def test_a_rerun_finds_its_set_among_others(made: PreparedSet):
    found = reopen(made.path.parent)
    shutil.copytree(made.path, made.path.parent / "other")
    again = open_prepared(found.data, found.aev, found.precision)
    assert again.path == found.data.prepared == made.path


def test_a_set_of_another_version_is_told(made: PreparedSet):
    path = made.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["made_by"]["format"] = 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="another version of pykinml; prepare it again"):
        reopen(made.path)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"made_by": {}}', f'{{"made_by": {{"format": {FORMAT}}}, "checksums": {{}}, "sources": []}}'],
)
def test_a_broken_manifest_is_told(made: PreparedSet, content: str):
    (made.path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json is not what was written there"):
        reopen(made.path)
