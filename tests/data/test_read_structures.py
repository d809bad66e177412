"""Structures for prediction: of files of any format, whole, whatever labels they have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase.build import molecule

from pykinml_func.data.formats.database import write_database
from pykinml_func.data.formats.sources import read_structures
from pykinml_func.errors import DataError
from pykinml_func.types import Structures


def test_reads_databases_without_or_with_few_energies(make_structures: Callable[..., Structures], tmp_path: Path):
    structures = make_structures(["C2H2O"] * 3)
    for name, labelled in (("C2H2O.db", 0), ("C2H2O.some.db", 1)):
        structures.energies[labelled:] = np.nan
        write_database(tmp_path / name, structures, {1: "made up"})
        images = read_structures([tmp_path / name])
        np.testing.assert_array_equal(np.concatenate([atoms.positions for atoms in images]), structures.positions)


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
