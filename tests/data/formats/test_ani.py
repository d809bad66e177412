"""ANI's HDF5: groups of conformers in Hartree, with labels that may be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pykinml_func.data.formats import ani as module_of_ani
from pykinml_func.data.formats import blocks
from pykinml_func.data.formats.ani import ani_count
from pykinml_func.data.formats.rows import Query
from pykinml_func.data.formats.sources import input_format, read_inputs
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

HARTREE = 27.211386024367243
"""eV; CODATA 2014, as ASE has it"""


def geometry(n_structures: int, n_atoms: int) -> np.ndarray:
    line = np.arange(n_atoms)[:, None] * [0.0, 0.3, 1.0]
    return line + np.arange(n_structures)[:, None, None] * 0.01


def write(path: Path, groups: dict[str, dict[str, Any]]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in groups.items():
            for key, value in values.items():
                file[f"{name}/{key}"] = value
    return path


@pytest.fixture
def ani(tmp_path: Path) -> Path:
    """Three groups, two of them nested: ANI-1's bytes, ANI-1x's atomic numbers, and forces in one of them."""
    text = h5py.string_dtype()
    return write(
        tmp_path / "ani.h5",
        {
            "gdb/s02/b": {
                "species": np.array([b"C", b"O"]),
                "coordinates": geometry(3, 2),
                "energies": [-113.0, -113.1, np.nan],
                "forces": np.arange(18.0).reshape(3, 2, 3),
            },
            "gdb/s02/a": {
                "atomic_numbers": np.array([8, 1, 1], dtype=np.uint8),
                "coordinates": geometry(2, 3).astype(np.float32),
                "energies": np.array([[-76.0], [-76.5]]),
                "smiles": np.array("O", dtype=text),
            },
            "c": {
                "symbols": np.array([["H", "H"]], dtype=text),
                "coordinates": geometry(1, 2),
                "energy": [-1.0],
                "forces": np.full((1, 2, 3), np.nan),
            },
        },
    )


def test_structures_are_read_in_electronvolts(ani: Path):
    found, lines = read_inputs([ani], [1])
    assert found.ids.tolist() == ["ani/1", "ani/2", "ani/3", "ani/4", "ani/5"]
    assert found.names.tolist() == ["c", *["gdb/s02/a"] * 2, *["gdb/s02/b"] * 2]
    assert found.numbers.tolist() == [1, 1, 8, 1, 1, 8, 1, 1, 6, 8, 6, 8]
    np.testing.assert_allclose(found.energies[:, 0], np.array([-1, -76, -76.5, -113, -113.1]) * HARTREE, rtol=1e-15)
    assert np.isnan(found.forces[:8]).all()
    np.testing.assert_allclose(found.forces[8:, 0], np.arange(12).reshape(4, 3) * HARTREE, rtol=1e-15)
    np.testing.assert_array_equal(found.positions[8:], geometry(3, 2)[:2].reshape(4, 3))
    assert lines == (
        "ani.h5: ANI HDF5, 5 structures, energies Hartree -> eV, forces Hartree/Å -> eV/Å (2 have them), "
        "1 without energies left out",
    )
    assert input_format(ani) == "ani"


def test_further_levels_have_their_own_datasets(ani: Path):
    with h5py.File(ani, "a") as file:
        group = file["gdb/s02/b"]
        group["energies_0"], group["forces_0"] = [-10.0, np.nan, -12.0], np.ones((3, 2, 3))
    found, _ = read_inputs([ani], [0, 1], names=["%b"])
    np.testing.assert_allclose(
        found.energies / HARTREE, [[-10, -113.0], [np.nan, -113.1], [-12, np.nan]], rtol=1e-15, equal_nan=True
    )
    assert np.isnan(found.forces[2:4, 0]).all(), "forces without an energy are no label"
    low, _ = read_inputs([ani], [0])
    assert low.ids.tolist() == ["ani/4", "ani/6"], "a level that has datasets of its name has no others"


@pytest.mark.parametrize("most", [1, 2])
def test_groups_are_read_in_parts(ani: Path, monkeypatch: pytest.MonkeyPatch, most: int):
    with h5py.File(ani, "a") as file:
        file["gdb/s02/b/energies_0"] = [-10.0, np.nan, -12.0]
    whole, lines = read_inputs([ani], [0, 1])
    for module in (module_of_ani, blocks):
        monkeypatch.setattr(module, "BLOCK_ROWS", most)
    found, again = read_inputs([ani], [0, 1])
    assert again == lines
    assert ani_count(ani, Query()) == 6
    for name, a, b in zip(Structures._fields, found, whole, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_names_and_ids_filter(ani: Path):
    found, _ = read_inputs([ani], [1], names=["gdb/%"], ids=["ani/2", "ani/5"])
    assert found.ids.tolist() == ["ani/2", "ani/5"]
    with pytest.raises(DataError, match=r"fidelity 3, .* looked for in energies_3 or energies$"):
        read_inputs([write(ani.parent / "none.h5", {"g": {"species": [b"H"], "coordinates": geometry(1, 1)}})], [3])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"coordinates": geometry(3, 2)[0]},
            r"/g: coordinates must be of shape \(structures, atoms, 3\), got \(2, 3\)",
        ),
        ({"energies": [1.0, 2.0]}, "/g: energies must be 3 numbers or arrays"),
        ({"energies": np.ones((3, 2))}, "/g: energies must be one number a structure, got 2"),
        ({"energies": [1.0, np.inf, 0.0]}, "g structure 2, energy at level 1 must be a finite number"),
        ({"forces": np.ones((3, 3, 2))}, "g structure 1, forces at level 1 must be 2 x 3 finite"),
        ({"species": [b"C", b"Q"]}, "/g must have chemical symbols for atoms, got 'Q'"),
        ({"species": [0, 1]}, "/g must have atomic numbers of 1 or more, got 0"),
        ({"species": [6, 1, 1]}, "g structure 1, positions must be 3 x 3 finite numbers"),
        ({"species": [[6, 1], [6, 1]]}, "/g: species must be one list, or one a structure, got 2"),
        ({"coordinates": np.zeros((3, 2, 3))}, "g structure 1, positions must .* got atoms 0 and 1 in one place"),
    ],
)
def test_broken_groups_are_refused(tmp_path: Path, changed: dict[str, Any], message: str):
    group = {"species": [b"C", b"O"], "coordinates": geometry(3, 2), "energies": [-1.0, -2.0, -3.0], **changed}
    with pytest.raises(DataError, match=rf"ani\.h5, {message}"):
        read_inputs([write(tmp_path / "ani.h5", {"g": group})], [1])
