"""Groups of structures: what they have in common, and parts of a split made of whole ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykinml_func.data.groups import check_groups, part_of_each, structure_groups
from pykinml_func.errors import ConfigError, DataError
from pykinml_func.types import Structures

NAMES = ["irc_12_001", "irc_12_002", "irc_7_001", "ts_12", "irc_7_002", "min"]


@pytest.fixture
def structures(make_structures: Callable[..., Structures]) -> Structures:
    """CH4/1, CH4/2, C2H2/1, ... with `NAMES`."""
    made = make_structures(["CH4", "CH4", "C2H2", "H2O", "C2H2", "OH2"])
    ids = np.array(["CH4/1", "CH4/2", "C2H2/3", "H2O/9", "C2H2/10", "H2O/11"])
    return made._replace(names=np.array(NAMES), ids=ids)


def groups_of(split_by: str, structures: Structures) -> list[str]:
    return structure_groups(split_by, structures, np.arange(structures.n_structures)).tolist()


@pytest.mark.parametrize(
    ("split_by", "expected"),
    [
        ("name", NAMES),
        ("name:^[a-z]+", ["irc", "irc", "irc", "ts", "irc", "min"]),
        ("name:^[a-z]+_([0-9]+)|^min$", ["12", "12", "7", "12", "7", "min"]),
        ("name:^irc_([0-9]+)|^ts_(.*)|(.*)", ["12", "12", "7", "12", "7", "min"]),
        ("name:^([a-z]+)_([0-9]+)|^min$", ["irc/12", "irc/12", "irc/7", "ts/12", "irc/7", "min"]),
        ("name:^(?:irc:)?(.)", ["i", "i", "i", "t", "i", "m"]),  # a colon may be part of the expression
        ("id:2", ["CH4/1-2", "CH4/1-2", "C2H2/3-4", "H2O/9-10", "C2H2/9-10", "H2O/11-12"]),
        ("id:10", ["CH4/1-10", "CH4/1-10", "C2H2/1-10", "H2O/1-10", "C2H2/1-10", "H2O/11-20"]),
        ("formula", ["CH4", "CH4", "C2H2", "H2O", "C2H2", "H2O"]),
    ],
)
def test_what_structures_are_grouped_by(structures: Structures, split_by: str, expected: list[str]):
    assert groups_of(split_by, structures) == expected
    chosen = structure_groups(split_by, structures, np.array([4, 0]))
    assert chosen.tolist() == [expected[4], expected[0]]


@pytest.mark.parametrize("split_by", ["name", "name:^irc"])
def test_structures_without_names_are_counted(structures: Structures, split_by: str):
    structures.names[[1, 4]] = ""
    with pytest.raises(
        DataError, match=r"split_by name.* needs .* names, and 2 of 6 have none, CH4/2 first; name them"
    ):
        groups_of(split_by, structures)
    assert structure_groups("name", structures, np.array([0, 3])).tolist() == ["irc_12_001", "ts_12"], "not asked for"


@pytest.mark.parametrize("pattern", ["^irc", "^irc|x*"])
def test_a_pattern_that_misses_a_name_names_it(structures: Structures, pattern: str):
    with pytest.raises(ConfigError, match=r"find something in every name, and .* finds nothing in 'min'"):
        groups_of(f"name:{pattern}", structures)


def test_groups_of_one_are_refused():
    check_groups(np.array(["a", "b", "a"]))
    check_groups(np.array(["a"]))
    with pytest.raises(ConfigError, match=r"groups of several structures, got one for each of 3 \(a first\)"):
        check_groups(np.array(["a", "c", "b"]))


def parts(
    groups: np.ndarray, counts: tuple[int, int, int], seed: int = 0, strata: np.ndarray | None = None
) -> np.ndarray:
    return part_of_each(
        groups, np.zeros(len(groups)) if strata is None else strata, counts, np.random.default_rng(seed)
    )


@given(
    sizes=st.lists(st.integers(1, 30), min_size=3, max_size=30),
    shares=st.tuples(st.floats(0.05, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_groups_stay_whole_and_every_part_has_one(sizes: list[int], shares: tuple[float, ...], seed: int):
    groups = np.repeat([f"g{k}" for k in range(len(sizes))], sizes)
    ends = np.floor(np.cumsum(shares) / sum(shares) * len(groups)).astype(int)
    counts = (int(ends[0]), int(ends[1] - ends[0]), int(ends[2] - ends[1]))
    found = parts(groups, counts, seed)
    for group in np.unique(groups):
        assert len(set(found[groups == group].tolist())) == 1
    for part, count in enumerate(counts):
        assert (found == part).any() == (count > 0)
        assert abs((found == part).sum() - count) <= 2 * max(sizes)
    np.testing.assert_array_equal(found, parts(groups, counts, seed))


def test_counts_are_nearly_met_in_many_ways():
    groups = np.repeat([f"g{k}" for k in range(12)], [70, 70, 55, 45, 40, 40, 30, 30, 25, 20, 10, 10])
    draws = set()
    for seed in range(20):
        found = parts(groups, (356, 44, 45), seed)
        assert all(abs((found == part).sum() - count) <= 20 for part, count in enumerate((356, 44, 45)))
        draws.add(tuple(found.tolist()))
    assert len(draws) > 10, "the seed draws the groups"


def test_what_is_left_over_is_whole_groups_too():
    found = parts(np.repeat([f"g{k}" for k in range(20)], 5), (40, 10, 10))
    assert [(found == part).sum() for part in range(4)] == [40, 10, 10, 40]


def test_a_large_group_leaves_the_others_a_part_each():
    groups = np.repeat(["a", "b", "c"], [98, 1, 1])
    for seed in range(5):
        assert [(parts(groups, (80, 10, 10), seed) == part).sum() for part in range(3)] == [98, 1, 1]


def test_every_group_is_tested_on_with_some_seed():
    groups = np.repeat([f"g{k}" for k in range(8)], [16, 14, 14, 13, 12, 11, 10, 10])
    tested = {name for seed in range(60) for name in groups[parts(groups, (70, 15, 15), seed) == 2].tolist()}
    assert tested == set(groups.tolist())


def test_parts_get_their_shares_of_each_kind():
    groups = np.repeat([f"g{k:02}" for k in range(20)], 10)
    strata = np.repeat(np.arange(20) < 4, 10)  # whole groups of a kind, which chance seldom gives every part
    for seed in range(10):
        found = parts(groups, (100, 50, 50), seed, strata)
        assert [(found == part).sum() for part in range(3)] == [100, 50, 50]
        assert [strata[found == part].sum() for part in range(3)] == [20, 10, 10]


def test_a_part_that_is_due_a_rare_kind_has_it_rather_than_its_count():
    groups = np.repeat([f"g{k}" for k in range(10)], [45, 45, *[10] * 8])
    strata = (np.arange(170) < 90) & (np.arange(170) % 15 == 0)  # three in each of the large groups
    for seed in range(10):
        found = parts(groups, (150, 20, 0), seed, strata)
        assert [strata[found == part].sum() for part in range(2)] == [3, 3]


@pytest.mark.parametrize(("names", "counts", "asked"), [(["a"], (5, 1, 0), 2), (["a", "b"], (4, 1, 1), 3)])
def test_fewer_groups_than_parts_are_refused(names: list[str], counts: tuple[int, int, int], asked: int):
    groups = np.resize(names, 6)
    said = rf"a group or more for each part of the split, {asked} in all, got {len(names)} of 6 structures \({names[0]}"
    with pytest.raises(ConfigError, match=said):
        parts(groups, counts)
