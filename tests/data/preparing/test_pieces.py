"""Pieces: together they are the input, in its order; each is on disk whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from pykinml_func.data.formats import database_reader
from pykinml_func.data.formats.blocks import joined
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.formats.rows import Query
from pykinml_func.data.formats.sources import find_inputs, input_format, read_inputs
from pykinml_func.data.preparing import pieces
from pykinml_func.data.preparing.pieces import (
    piece_as_json,
    piece_of_json,
    plan_pieces,
    read_blocks,
    read_record,
    write_piece,
)
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

Structured = Callable[..., Structures]


@pytest.fixture
def formats(tmp_path: Path, make_structures: Structured) -> dict[Path, str]:
    """H2 with 2500 rows, of which some lack energies, small CH4 and CO, and a file of ASE."""
    hydrogen = make_structures(["H2"] * 50, 0, (0, 1)).take(np.arange(2500) % 50)
    hydrogen.energies[::7] = np.nan
    write_database(tmp_path / "H2.db", hydrogen, {0: "low", 1: "high"})
    for formula in ("CH4", "CO"):
        write_database(tmp_path / f"{formula}.db", make_structures([formula] * 4, 1, (0, 1)), {0: "low", 1: "high"})
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    ase.io.write(tmp_path / "water.extxyz", [atoms] * 3)
    return {path: input_format(path) for path in find_inputs([str(tmp_path / "*.*")])}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of at most 1000 rows."""
    for module in (pieces, database_reader):
        monkeypatch.setattr(module, "BLOCK_ROWS", 1000)


def assert_same(found: Structures, expected: Structures) -> None:
    for name, a, b in zip(Structures._fields, found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


IDS = {"H2/3", "H2/999", "H2/1000", "H2/2499", "CO/2", "water/1"}


@pytest.mark.parametrize("ids", [None, IDS])
def test_pieces_together_are_the_input(formats: dict[Path, str], tmp_path: Path, ids: set[str] | None):
    (tmp_path / "read").mkdir()
    planned = plan_pieces(formats, Query([1], ids=ids))
    found = []
    for piece in planned:
        again = piece_of_json(piece_as_json(piece))
        assert again._replace(query=piece.query) == piece and again.name == piece.name
        assert again.query.ids == piece.query.ids
        write_piece(again, tmp_path / "read")
        found += read_blocks(tmp_path / "read" / piece.name)
    expected, _ = read_inputs(list(formats), [1], ids=None if ids is None else sorted(ids))
    assert_same(joined(found), expected)
    records = [read_record(tmp_path / "read" / piece.name) for piece in planned]
    assert sum(record.n_atoms for record in records) == len(expected.numbers)
    assert max(record.id_length for record in records) == expected.ids.dtype.itemsize // 4
    assert {number for record in records for number in record.numbers} == set(expected.numbers.tolist())
    assert sum(piece.n_expected for piece in planned) == (5 if ids else 2508), "ASE's are not counted beforehand"
    assert sum(record.n_read for record in records) == (6 if ids else 2511)
    assert not list((tmp_path / "read").glob("reading.*"))


def test_a_piece_is_a_stretch_or_several_small_files(formats: dict[Path, str]):
    planned = plan_pieces(formats, Query([1]))
    parts = [[(part.path.stem, part.span and part.span[:2]) for part in piece.parts] for piece in planned]
    assert parts == [
        [("CH4", (1, 4)), ("CO", (1, 4))],
        [("H2", (1, 999))],
        [("H2", (1000, 1999))],
        [("H2", (2000, 2500)), ("water", None)],
    ]


def test_names_are_those_of_the_content_wherever_it_lies(formats: dict[Path, str], tmp_path: Path):
    before = [piece.name for piece in plan_pieces(formats, Query([1]))]
    (tmp_path / "moved").mkdir()
    moved = {path.rename(tmp_path / "moved" / path.name): form for path, form in formats.items()}
    assert [piece.name for piece in plan_pieces(moved, Query([1]))] == before
    assert len(set(before)) == len(before)


def test_a_piece_that_cannot_be_read_is_not_there(
    formats: dict[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "read").mkdir()
    piece = plan_pieces(formats, Query([1]))[0]

    def broken(*_: Any) -> Any:
        raise DataError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "tally", broken)
        with pytest.raises(DataError, match="broken"):
            write_piece(piece, tmp_path / "read")
    assert not list((tmp_path / "read").iterdir())
    write_piece(piece, tmp_path / "read")
    write_piece(piece, tmp_path / "read")  # as a process may whose parent was killed
    assert [path.name for path in (tmp_path / "read").iterdir()] == [piece.name]


def test_blocks_of_a_piece_are_put_together(formats: dict[Path, str], tmp_path: Path):
    (tmp_path / "read").mkdir()
    for piece in plan_pieces(formats, Query([1])):
        write_piece(piece, tmp_path / "read")
        assert read_record(tmp_path / "read" / piece.name).n_blocks == 1
