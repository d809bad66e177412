from __future__ import annotations

import pytest
from pydantic import ValidationError

from pykinml_func.config.data import DataConfig, check_split


@pytest.mark.parametrize("split", [(36, 4), (36, 4, 0), (0.7, 0.2, 0.1), (0.8, 0.1), (0.5, 0.2, 0.1), (1, 0, 0)])
def test_splits_that_are_taken(split: tuple[float, ...]) -> None:
    check_split(split, from_files=False)


@pytest.mark.parametrize(
    ("split", "from_files", "said"),
    [
        ((0.7, 0.2, 0.2), False, "sum to at most 1, got 0.7, 0.2, 0.2"),
        ((0.5, 4, 0), False, "sum to at most 1"),
        ((10,), False, "two or three numbers"),
        ((1, 2, 3, 4), False, "two or three numbers"),
        ((10, -1), False, "0 or more"),
        ((0, 10, 10), False, "something to train on"),
        ((0.8, 0.1, 0.1), True, "counts when split_files is given"),
    ],
)
def test_splits_that_are_refused(split: tuple[float, ...], from_files: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_split(split, from_files)


@pytest.mark.parametrize(
    ("given", "levels", "fidelities", "baseline"),
    [
        ({"fidelity": 2}, (2,), (2,), None),
        ({"delta": True, "low_fidelity": 0}, (0, 1), (1,), 0),
        ({"multi_fidelity": True, "low_fidelity": (0, 3), "fidelity": 1}, (0, 3, 1), (0, 3, 1), None),
    ],
)
def test_levels_that_are_needed_predicted_and_subtracted(
    given: dict[str, object], levels: tuple[int, ...], fidelities: tuple[int, ...], baseline: int | None
) -> None:
    config = DataConfig(**given)  # type: ignore[arg-type]
    assert (config.levels, config.fidelities, config.baseline) == (levels, fidelities, baseline)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"delta": True}, "delta needs one level in low_fidelity, to be subtracted, got none"),
        ({"delta": True, "low_fidelity": (0, 2)}, "got 0, 2"),
        ({"multi_fidelity": True}, "needs the levels below in low_fidelity"),
        ({"low_fidelity": (0,)}, "low_fidelity needs delta or multi_fidelity, got 0"),
        ({"delta": True, "multi_fidelity": True, "low_fidelity": 0}, "delta and multi_fidelity contradict each other"),
        ({"multi_fidelity": True, "low_fidelity": (0, 1)}, "different levels of 0 or more, got 0, 1 and 1"),
        ({"multi_fidelity": True, "low_fidelity": (-1,)}, "different levels of 0 or more, got -1 and 1"),
        ({"delta": True, "low_fidelity": True}, "low_fidelity"),
        ({"pre_saved": True, "input": ("a.db",)}, "pre_saved and input contradict each other"),
    ],
)
def test_levels_and_sources_that_contradict_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "split_by", [None, "name", "formula", "id:2", "id:100", "name:^irc_([0-9]+)", "name::", "name:a,b"]
)
def test_groups_that_are_taken(split_by: str | None) -> None:
    assert DataConfig(split_by=split_by).split_by == split_by


@pytest.mark.parametrize(
    ("split_by", "said"),
    [
        ("names", "split_by must be name, name:REGEX, id:N with N of 2 or more, or formula, got 'names'; e.g. name"),
        ("name:", "got 'name:'"),
        ("id", "got 'id'"),
        ("id:", "got 'id:'"),
        ("id:1", "got 'id:1'"),
        ("id:-5", "got 'id:-5'"),
        ("id:5.0", "got 'id:5.0'"),
        ("formula:CH4", "got 'formula:CH4'"),
        ("", "got ''"),
        ("name:(irc", r"needs a regular expression, got '\(irc': missing \), unterminated subpattern"),
    ],
)
def test_groups_that_are_refused(split_by: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig(split_by=split_by)
