"""What all readers share: filters as SQL has them, checks that name file and row, missing labels."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pykinml_func.data.formats.rows import Query, Row, checked, found_labels, numbers_of, source_label
from pykinml_func.errors import DataError

POSITIONS = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]])


def row(number: int = 1, **changed: Any) -> Row:
    made = Row(f"CO/{number}", np.array([6, 8]), POSITIONS, "name", 300.0, {1: (-1.0, np.zeros((2, 3)))})
    return made._replace(**changed)


@example(pattern="aB%", name="AbC")
@example(pattern="É_", name="éa")
@example(pattern="a%b", name="a\nb")
@given(pattern=st.text("ab%_.*\n[É", max_size=5), name=st.text("abABé.*\n[", max_size=5))
def test_names_match_as_in_sql(pattern: str, name: str):
    with closing(sqlite3.connect(":memory:")) as connection:
        (expected,) = connection.execute("SELECT ? LIKE ?", (name, pattern)).fetchone()
    assert Query(names=[pattern]).admits(row(name=name)) == bool(expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"numbers": np.array([], dtype=int)}, "must have at least one atom"),
        ({"positions": POSITIONS[:1]}, r"positions must be 2 x 3 finite numbers \(a row an atom\), got .* \(1, 3\)"),
        ({"positions": POSITIONS + np.inf}, r"positions must be 2 x 3 finite .*, got inf for x of atom 0; correct or"),
        ({"positions": POSITIONS.astype(str)}, "positions must be 2 x 3 finite numbers"),
        ({"positions": POSITIONS * 1e-4}, "got atoms 0 and 1 in one place"),
        ({"labels": {2: (np.inf, None)}}, "energy at level 2 must be a finite number of eV, got inf"),
        ({"labels": {2: ("low", None)}}, "energy at level 2 must be a finite number of eV, got 'low'"),
        ({"labels": {0: (1.0, np.zeros((3, 2)))}}, "forces at level 0 must be 2 x 3 finite"),
        (
            {"labels": {0: (1.0, [[0, 0, 0], [0, np.nan, 0]])}},
            "forces at level 0 must .*, got nan for y of atom 1; correct",
        ),
    ],
)
def test_what_is_no_molecule_is_refused(changed: dict[str, Any], message: str):
    with pytest.raises(DataError, match=f"^file, row 7.*{message}"):
        checked(row(**changed), "file, row 7")


def test_missing_labels_are_left_out():
    forces = np.zeros((2, 3))
    found = found_labels(
        {0: (np.nan, forces), 1: (None, None), 2: (-1.0, forces * np.nan), 3: (np.float32(-2), forces), 4: (-3, None)}
    )
    assert {level: (energy, there is not None) for level, (energy, there) in found.items()} == {
        2: (-1.0, False),
        3: (-2.0, True),
        4: (-3.0, False),
    }


def test_symbols_must_be_elements():
    assert numbers_of(["C", "Cl"], "it").tolist() == [6, 17]
    for symbol, said in (("Xx", "'Xx'"), ("X", "atomic numbers of 1 or more, got 0")):
        with pytest.raises(DataError, match=f"it must have .*{said}"):
            numbers_of(["C", symbol], "it")


def test_labels_end_no_split_file_line_early():
    assert source_label(Path("in/my two  sets.extxyz")) == "my_two_sets"
    assert source_label(Path("CH4.second.db")) == "CH4.second"
