"""Blocks: what the query asks for, cut to a size, and the same end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pykinml_func.data.formats import blocks
from pykinml_func.data.formats.blocks import Found, collect, joined, select, slice_of
from pykinml_func.data.formats.rows import Query, Row
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

POSITIONS = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]])

Structured = Callable[..., Structures]


def row(number: int = 1, **changed: Any) -> Row:
    made = Row(f"CO/{number}", np.array([6, 8]), POSITIONS, "name", 300.0, {1: (-1.0, np.zeros((2, 3)))})
    return made._replace(**changed)


def assert_same(found: Structures, expected: Structures) -> None:
    for name, a, b in zip(Structures._fields, found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_filters_and_labels_select():
    rows = [("first", row(1)), ("second", row(2, temperature=np.nan)), ("third", row(3, labels={}))]
    (found,) = select(rows, Query([1], temperature=300.0), "a note")
    assert found.structures.ids.tolist() == ["CO/1"]
    assert (found.n_unlabelled, found.note) == (1, "a note")
    (found,) = select([("third", row(3, labels={})), rows[0]], Query(ids={"CO/3"}, labels=False))
    assert found.structures.ids.tolist() == ["CO/3"]
    assert found.structures.forces.shape == (2, 0, 3)


def test_what_is_filtered_out_may_be_broken():
    broken = row(2, positions=np.zeros((2, 3)), name="broken")
    rows = [("a row", row()), ("another", broken)]
    (found,) = select(rows, Query([1], names=["name"]))
    assert found.structures.n_structures == 1
    with pytest.raises(DataError, match="another, positions must have its atoms at least"):
        list(select(rows, Query([1])))


@pytest.mark.parametrize(("most", "limit"), [("BLOCK_ROWS", 3), ("BLOCK_ATOMS", 5)])
def test_blocks_are_cut_to_size_and_counted_once(monkeypatch: pytest.MonkeyPatch, most: str, limit: int):
    monkeypatch.setattr(blocks, most, limit)
    taken: list[int] = []

    def rows() -> Any:
        for k in range(1, 9):
            taken.append(k)
            yield "it", row(k, labels={} if k in (2, 5) else {1: (float(k), None)})

    cut = select(rows(), Query([1]))
    found = [(block.structures.ids.tolist(), block.n_unlabelled, len(taken)) for block in cut]
    assert found == [(["CO/1", "CO/3", "CO/4"], 1, 4), (["CO/6", "CO/7", "CO/8"], 1, 8), ([], 0, 8)]


def test_blocks_end_to_end_are_the_whole(make_structures: Structured):
    whole = make_structures(["CH4", "CO", "H2O", "C2H2", "CO"], levels=(0, 3))
    assert_same(joined([slice_of(whole, 0, 2), slice_of(whole, 2, 2), slice_of(whole, 2, 5)]), whole)


def test_blocks_of_different_levels_have_all_of_them(make_structures: Structured):
    low, high = make_structures(["CO"] * 2, 1, (0,)), make_structures(["H2"], 2, (0, 5))
    found = joined([high, low])
    assert found.levels.tolist() == [0, 5]
    np.testing.assert_array_equal(found.energies, [*high.energies, *([value, np.nan] for (value,) in low.energies)])
    np.testing.assert_array_equal(found.forces[2:, 0], low.forces[:, 0])
    assert np.isnan(found.forces[2:, 1]).all()


def test_none_is_an_error_that_says_what_there_is(make_structures: Structured):
    with pytest.raises(DataError, match=r"fidelity 1, names a%, temperature any\); the files hold CO.db: something"):
        collect([], Query([1], names=["a%"]), [Path("CO.db")], lambda path: f"{path}: something")
    found = [Found(make_structures(["CO"]), 0)]
    with pytest.raises(DataError, match=r"1 of 2 structures are not in the input .*: CO/9; add their files"):
        collect(found, Query([1], ids={"CO/1", "CO/9"}), [Path("CO.db")], str)
