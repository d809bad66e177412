"""Splits: disjoint whatever is asked for, exact counts, PyKinML's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pykinml_func.config import DataConfig
from pykinml_func.data.splits import Split, make_split, make_split_from_marks, read_split_files, write_split
from pykinml_func.errors import ConfigError, DataError

ALIKE = np.zeros(100)
"""Strata of structures that are all of one kind."""


def sizes(split: Split) -> tuple[int, ...]:
    return tuple(len(part) for part in split)


def assert_disjoint(split: Split, n_structures: int) -> None:
    chosen = np.concatenate(split)
    assert len(set(chosen.tolist())) == len(chosen)
    assert set(chosen.tolist()) <= set(range(n_structures))


@given(
    n=st.integers(1, 300),
    split=st.one_of(
        st.tuples(st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1)).map(
            lambda f: tuple(v / max(sum(f), 1) for v in f)
        ),
        st.tuples(st.integers(1, 120), st.integers(0, 120), st.integers(0, 120)),
        st.tuples(st.floats(0.01, 0.6), st.floats(0, 0.4)),
    ),
    seed=st.integers(0, 2**31),
)
def test_no_structure_is_in_two_parts(n: int, split: tuple[float, ...], seed: int):
    asked = DataConfig(split=split).split
    try:
        found = make_split(asked, np.zeros(n), seed)
    except ConfigError:
        assert sum(asked) > n
        return
    assert_disjoint(found, n)
    if sum(asked) > 1 + 1e-9:
        assert sizes(found) == tuple(int(v) for v in asked)
    else:
        rest = (*asked, 1 - sum(asked))[:3]
        assert all(abs(size - n * part) <= 1 for size, part in zip(sizes(found), rest, strict=True))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ((0.8, 0.1, 0.1), (80, 10, 10)),
        ((0.7, 0.2, 0.1), (70, 20, 10)),  # its sum is 0.9999999999999999, which PyKinML refuses
        ((0.8, 0.1), (80, 10, 10)),
        ((0.5, 0.1, 0.1), (50, 10, 10)),
        ((1.0, 0.0, 0.0), (100, 0, 0)),
        ((60, 10, 5), (60, 10, 5)),
        ((60, 10), (60, 10, 0)),
        ((99, 1, 0), (99, 1, 0)),
    ],
)
def test_counts_and_fractions(split: tuple[float, ...], expected: tuple[int, ...]):
    assert sizes(make_split(DataConfig(split=split).split, ALIKE, 0)) == expected


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((0.7, 0.2, 0.2), r"fractions must sum to at most 1, got 0.7, 0.2, 0.2; give counts instead"),
        ((0.9, 0.2), "fractions must sum to at most 1"),
        ((10.5, 2, 1), "fractions must sum to at most 1"),
        ((0.0, 0.5, 0.5), "something to train on"),
        ((0.8, -0.1, 0.1), "numbers of 0 or more"),
        ((0.8,), "two or three numbers"),
    ],
)
def test_splits_that_are_refused(split: tuple[float, ...], message: str):
    with pytest.raises(ValidationError, match=message):
        DataConfig(split=split)


def test_more_than_there_is_is_refused():
    with pytest.raises(ConfigError, match=r"split asks for 90 \+ 10 \+ 1 structures, and the data hold 100"):
        make_split((90, 10, 1), ALIKE, 0)


def test_the_seed_decides():
    first, again, other = (make_split((0.8, 0.1), ALIKE, seed) for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.train, other.train)
    assert not np.array_equal(first.train, np.sort(first.train)), "training order must be shuffled"


MARKS = [2, -1, 2, 2, -1, 2, 2, 2, -1, 2]


@pytest.mark.parametrize(
    ("split", "expected"), [((5, 2, 0), (5, 2, 3)), ((5, 2), (5, 2, 3)), ((3, 1, 2), (3, 1, 2)), ((1, 0, 0), (1, 0, 3))]
)
def test_counts_within_split_files(split: tuple[float, ...], expected: tuple[int, ...]):
    asked = DataConfig(split=split, split_files=("tvt.txt",)).split
    found = make_split_from_marks(asked, MARKS, np.zeros(10), 0)
    assert sizes(found) == expected
    assert_disjoint(found, len(MARKS))
    assert {MARKS[m] for m in (*found.train, *found.valid)} == {2}
    assert {MARKS[m] for m in found.test} == {-1}
    assert np.array_equal(found.train, make_split_from_marks(asked, MARKS, np.zeros(10), 0).train)


@pytest.mark.parametrize("split", [(6, 2, 0), (5, 1, 4)])
def test_more_than_the_split_files_hold_is_refused(split: tuple[float, ...]):
    with pytest.raises(ConfigError, match=r"split files hold 7 marked 2 and 3 marked -1; ask for less"):
        make_split_from_marks(split, MARKS, np.zeros(10), 0)


def test_fractions_of_split_files_are_refused():
    with pytest.raises(ValidationError, match="counts when split_files is given"):
        DataConfig(split=(0.8, 0.1, 0.1), split_files=("tvt.txt",))


def test_fractions_of_marks_that_a_prepared_set_holds_are_refused():
    with pytest.raises(ConfigError, match=r"marked by split files, got 0\.8, 0\.1, 0\.1; e\.g\. 2000, 48, 0"):
        make_split_from_marks((0.8, 0.1, 0.1), MARKS, np.zeros(10), 0)


@pytest.mark.parametrize("seed", range(3))
def test_every_part_gets_its_share_of_each_stratum(seed: int):
    strata = np.arange(100) % 5 == 0
    for split in (
        make_split((0.5, 0.25, 0.25), strata, seed),
        make_split_from_marks((50, 25, 0), [2] * 75 + [-1] * 25, strata, seed),
    ):
        assert_disjoint(split, 100)
        shares = [strata[part].mean() for part in split]
        np.testing.assert_allclose(shares, 0.2, atol=0.04)


@pytest.mark.parametrize(("n_rare", "shares"), [(8, (6, 1, 1)), (6, (4, 1, 1)), (5, (3, 1, 1)), (2, (2, 0, 0))])
def test_a_rare_stratum_reaches_every_part(n_rare: int, shares: tuple[int, ...]):
    strata = np.arange(100) < n_rare
    for seed in range(50):
        split = make_split((0.8, 0.1, 0.1), strata, seed)
        assert_disjoint(split, 100)
        assert sizes(split) == (80, 10, 10)
        assert tuple(int(strata[part].sum()) for part in split) == shares


@given(
    strata=st.lists(st.integers(0, 3), min_size=10, max_size=60),
    split=st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 2)),
    seed=st.integers(0, 99),
)
def test_strata_change_no_counts(strata: list[int], split: tuple[int, int, int], seed: int):
    kinds = np.array(strata)
    found = make_split(split if sum(split) > 1 else (0.6, 0.2, 0.2), kinds, seed)
    assert_disjoint(found, len(kinds))
    if sum(split) > 1:
        assert sizes(found) == split


def test_one_stratum_is_one_permutation():
    split = make_split((0.5, 0.25, 0.25), np.ones(100), 3)
    np.testing.assert_array_equal(np.concatenate(split), np.random.default_rng(3).permutation(100))


def test_a_split_is_read_as_it_was_written(tmp_path: Path):
    ids, energies = np.array([f"CH4/{k}" for k in range(30)]), np.random.default_rng(0).normal(-1000, 1, 30)
    split = make_split((20, 4, 5), np.zeros(30), 0)
    write_split(tmp_path / "tvt.txt", split, ids, energies)
    marks = read_split_files([tmp_path / "tvt.txt"])
    assert list(marks) == ids[np.concatenate(split)].tolist()
    assert list(marks.values()) == [2] * 24 + [-1] * 5
    # PyKinML reads `id mark energy`
    rows = [line.split() for line in (tmp_path / "tvt.txt").read_text().splitlines()]
    assert [float(row[2]) for row in rows] == energies[np.concatenate(split)].tolist()


def test_split_files_add_up(tmp_path: Path):
    (tmp_path / "a").write_text("C5H5/1 2 -5262.1\n\n  C5H5/2 -1\n")
    (tmp_path / "b").write_text("C2H2/1\t-1\t-2103.9 extra\n")
    assert read_split_files([tmp_path / "a", tmp_path / "b"]) == {"C5H5/1": 2, "C5H5/2": -1, "C2H2/1": -1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C5H5/1 2\nC5H5/2 1\n", r"a, line 2 must be .* got 'C5H5/2 1'"),
        ("C5H5/1\n", r"a, line 1 must be"),
        ("C5H5 2\n", r"a, line 1 must be"),
        ("C5H5/first 2\n", r"a, line 1 must be"),
        ("C5H5/1 2\nC5H5/01 -1\n", r"a, line 2: C5H5/1 is listed twice"),
        ("C5H5/1 train\n", r"a, line 1 must be"),
        ("C5H5/1 2\nC5H5/2 2\nC5H5/1 -1\n", r"a, line 3: C5H5/1 is listed twice"),
        ("\n", "must list structures, got none"),
    ],
)
def test_split_files_that_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "a").write_text(text)
    with pytest.raises(DataError, match=message):
        read_split_files([tmp_path / "a"])


def test_leading_zeros_are_no_part_of_an_id(tmp_path: Path):
    (tmp_path / "a").write_text("C2H2/01 2\n")
    assert read_split_files([tmp_path / "a"]) == {"C2H2/1": 2}


def test_a_binary_split_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"SQLite format 3\0\xff\xfe")
    with pytest.raises(DataError, match=r"a must be text, .* got a binary file"):
        read_split_files([tmp_path / "a"])


def test_a_missing_split_file(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        read_split_files([tmp_path / "none"])


@pytest.mark.parametrize(("name", "expected"), [("sample_tvt.txt", 2112), ("mf_tvt.txt", 56)])
def test_real_split_files(shared: Path, name: str, expected: int):
    marks = read_split_files([shared / "data" / name])
    assert len(marks) == expected
    assert set(marks.values()) == {2, -1}


GROUPS = np.repeat([f"irc_{k}" for k in range(20)], 5)[np.random.default_rng(0).permutation(100)]


def assert_whole(groups: np.ndarray, split: Split) -> None:
    names = [set(groups[part].tolist()) for part in split]
    assert not names[0] & names[1] and not names[1] & names[2] and not names[0] & names[2]


@pytest.mark.parametrize(
    ("split", "expected"),
    [((0.8, 0.1, 0.1), (80, 10, 10)), ((0.5, 0.25), (50, 25, 25)), ((60, 10, 5), (60, 10, 5)), ((63, 7), (65, 5, 0))],
)
def test_groups_are_in_one_part(split: tuple[float, ...], expected: tuple[int, ...]):
    found = make_split(split, ALIKE, 0, GROUPS)
    assert_disjoint(found, 100)
    assert_whole(GROUPS, found)
    if split != (63, 7):
        assert sizes(found) == expected
    assert abs(len(found.train) - expected[0]) <= 5 and abs(len(found.valid) - expected[1]) <= 5
    kept = np.isin(GROUPS, GROUPS[np.concatenate(found)])
    assert sum(sizes(found)) == kept.sum(), "all of a group, or nothing"
    again, other = make_split(split, ALIKE, 0, GROUPS), make_split(split, ALIKE, 1, GROUPS)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert set(other.train.tolist()) != set(found.train.tolist())
    assert not np.array_equal(found.train, np.sort(found.train)), "training order must be shuffled"


def test_groups_keep_the_shares_of_strata():
    strata = np.arange(100) % 5 == 0
    found = make_split((0.5, 0.25, 0.25), strata, 3, GROUPS)
    np.testing.assert_allclose([strata[part].mean() for part in found], 0.2, atol=0.1)
    assert_whole(GROUPS, found)


def test_groups_of_one_are_no_groups():
    with pytest.raises(ConfigError, match="got one for each of 100"):
        make_split((0.8, 0.1, 0.1), ALIKE, 0, np.arange(100).astype(str))


def test_split_files_may_leave_groups_to_be_drawn():
    marks = np.where(np.isin(GROUPS, ["irc_3", "irc_4", "irc_5", "irc_6"]), -1, 2)
    found = make_split_from_marks((60, 20, 0), marks, ALIKE, 0, GROUPS)
    assert sizes(found) == (60, 20, 20)
    assert_whole(GROUPS, found)
    assert set(marks[found.test]) == {-1} and set(marks[np.concatenate(found[:2])]) == {2}
    fewer = make_split_from_marks((60, 20, 10), marks, ALIKE, 0, GROUPS)
    assert sizes(fewer) == (60, 20, 10)
    assert len(set(GROUPS[fewer.test])) == 2


def test_split_files_that_cut_groups_are_refused():
    marks = np.where(np.arange(100) % 3, 2, -1)
    with pytest.raises(ConfigError, match=r"mark some structures of irc_0 2 and others -1 \(18 such groups\); leave"):
        make_split_from_marks((50, 10, 0), marks, ALIKE, 0, GROUPS)


def test_a_written_split_of_groups_is_drawn_from_by_groups(tmp_path: Path):
    ids = np.array([f"CH4/{k + 1}" for k in range(100)])
    split = make_split((0.6, 0.2, 0.2), ALIKE, 0, GROUPS)
    write_split(tmp_path / "split.txt", split, ids, np.zeros(100))
    read = read_split_files([tmp_path / "split.txt"])
    found = make_split_from_marks((60, 20, 0), [read[name] for name in ids], ALIKE, 5, GROUPS)
    assert_whole(GROUPS, found)
    assert set(found.test) == set(split.test) and set(found.valid) != set(split.valid)
