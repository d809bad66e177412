"""Labels of a run: differences of levels, which structures have what is needed, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pykinml_func.config import DataConfig
from pykinml_func.data import labels as module
from pykinml_func.data.labels import ForceColumns, complete_structures, has_forces, training_labels
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

FORMULAS = ["CH4", "H2", "C2H2", "CH4", "CO"]
DELTA = {"fidelity": 5, "low_fidelity": 0, "delta": True}
CHAIN = {"fidelity": 5, "low_fidelity": (0, 2), "multi_fidelity": True}

Structured = Callable[..., Structures]
Settings = Mapping[str, Any]


@pytest.fixture
def structures(make_structures: Structured) -> Structures:
    """Levels 0, 2 and 5, all labels there."""
    return make_structures(FORMULAS, levels=(0, 2, 5))


def without_energy(structures: Structures, index: int, level: int) -> None:
    """Take a label away; its forces stay."""
    structures.energies[index, structures.levels == level] = np.nan


def without_forces(structures: Structures, index: int, level: int) -> None:
    a, b = structures.offsets[index : index + 2]
    structures.forces[a:b, structures.levels == level] = np.nan


def kept(
    settings: Settings, structures: Structures, forces: bool = False, members: Sequence[int] = range(5)
) -> list[int]:
    data = DataConfig(**settings)
    labels = training_labels(data, structures)
    return complete_structures(data, labels, has_forces(labels) if forces else None, np.array(members)).tolist()


@pytest.mark.parametrize(
    ("settings", "columns"),
    [({"fidelity": 2}, [1]), ({"fidelity": 0}, [0]), (CHAIN, [0, 1, 2]), (CHAIN | {"low_fidelity": (2,)}, [1, 2])],
)
def test_labels_are_those_of_the_levels_predicted(structures: Structures, settings: Settings, columns: list[int]):
    data = DataConfig(**settings)
    labels = training_labels(data, structures)
    assert labels.levels.tolist() == list(data.fidelities)
    np.testing.assert_array_equal(labels.energies, structures.energies[:, columns])
    np.testing.assert_array_equal(labels.forces, structures.forces[:, columns])
    np.testing.assert_array_equal(labels.positions, structures.positions)
    assert labels.ids.tolist() == structures.ids.tolist()


def test_levels_need_not_ascend(structures: Structures):
    """The chain's order is the user's: level 5 may be the cheap one."""
    labels = training_labels(DataConfig(fidelity=2, low_fidelity=(5, 0), multi_fidelity=True), structures)
    assert labels.levels.tolist() == [5, 0, 2]
    np.testing.assert_array_equal(labels.energies, structures.energies[:, [2, 0, 1]])
    np.testing.assert_array_equal(labels.forces, structures.forces[:, [2, 0, 1]])


def test_delta_labels_are_differences(structures: Structures):
    without_energy(structures, 1, 0)
    without_forces(structures, 2, 5)
    before = structures.energies.copy()
    labels = training_labels(DataConfig(**DELTA), structures)
    assert labels.levels.tolist() == [5]
    assert labels.energies.shape == (5, 1)
    for m in (0, 2, 3, 4):
        assert labels.energies[m, 0] == structures.energies[m, 2] - structures.energies[m, 0]
    assert np.isnan(labels.energies[1, 0]), "a difference needs both levels"
    a, b = structures.offsets[2:4]
    assert np.isnan(labels.forces[a:b]).all()
    rest = np.delete(np.arange(len(structures.numbers)), np.arange(a, b))
    expected = structures.forces[rest, 2] - structures.forces[rest, 0]
    np.testing.assert_array_equal(labels.forces[rest, 0], expected)
    np.testing.assert_array_equal(structures.energies, before, "the structures themselves stay as they are")


@pytest.mark.parametrize("settings", [{"fidelity": 5}, DELTA, CHAIN])
@pytest.mark.parametrize("forces", [False, True])
def test_all_are_kept_where_all_is_there(structures: Structures, settings: Settings, forces: bool):
    assert kept(settings, structures, forces) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "lacking", "levels"),
    [({"fidelity": 5}, 5, "level 5"), (DELTA, 5, "level 0 and level 5"), (DELTA, 0, "level 0 and level 5")],
    ids=["one level", "delta", "delta's baseline"],
)
def test_a_structure_that_lacks_a_level_is_named_or_left_out(
    structures: Structures, settings: Settings, lacking: int, levels: str
):
    without_energy(structures, 3, lacking)
    without_energy(structures, 4, lacking)
    with pytest.raises(
        DataError, match=rf"must have energies at {levels}, and 2 of 5 lack some, CH4/2 first; .*--skip-incomplete$"
    ):
        kept(settings, structures)
    assert kept({**settings, "skip_incomplete": True}, structures) == [0, 1, 2]


@pytest.mark.parametrize("settings", [{"fidelity": 5}, DELTA, CHAIN])
def test_structures_of_no_part_need_nothing(structures: Structures, settings: Settings):
    for level in (0, 2, 5):
        without_energy(structures, 0, level)
        without_energy(structures, 3, level)
    assert kept(settings, structures, members=[1, 2, 4]) == [1, 2, 4]
    with pytest.raises(DataError, match=r"and 1 of 3 lack some, CH4/2 first"):
        kept(settings, structures, members=[1, 3, 4])
    assert kept({**settings, "skip_incomplete": True}, structures, members=[1, 3, 4]) == [1, 4]
    for index in (1, 2):
        for level in (0, 2, 5):
            without_forces(structures, index, level)
    with pytest.raises(DataError, match=r"none of 2 structures has any"):
        kept(settings, structures, forces=True, members=[1, 2])


def test_a_level_that_is_not_asked_for_may_be_missing(structures: Structures):
    without_energy(structures, 3, 2)
    without_forces(structures, 1, 2)
    for settings in ({"fidelity": 5}, DELTA):
        assert kept(settings, structures, forces=True) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("settings", [{"fidelity": 5}, DELTA])
def test_forces_are_needed_where_they_are_trained_to(structures: Structures, settings: Settings):
    structures.forces[structures.offsets[2] + 1, structures.levels == 5, 0] = np.nan  # one component of one atom
    assert kept(settings, structures) == [0, 1, 2, 3, 4]
    message = (
        "energies and forces at level .* 1 of 5 lack some, C2H2/1 first; .*skip-incomplete, or train without forces"
    )
    with pytest.raises(DataError, match=message):
        kept(settings, structures, forces=True)
    without_energy(structures, 0, 5)
    assert kept({**settings, "skip_incomplete": True}, structures, forces=True) == [1, 3, 4]


@pytest.mark.parametrize("settings", [{"fidelity": 5}, DELTA, CHAIN])
@pytest.mark.parametrize("skip", [False, True])
def test_forces_nowhere(structures: Structures, settings: Settings, skip: bool):
    structures.forces[:] = np.nan
    with pytest.raises(DataError, match="none of 5 structures has any; train without forces"):
        kept({**settings, "skip_incomplete": skip}, structures, forces=True)
    assert kept({**settings, "skip_incomplete": skip}, structures) == [0, 1, 2, 3, 4]


def test_in_a_chain_any_energy_will_do(structures: Structures):
    for index, missing in {0: (0, 2), 1: (5,), 2: (2, 5), 3: (0, 5)}.items():
        for level in missing:
            without_energy(structures, index, level)
            without_forces(structures, index, level)
    assert kept(CHAIN, structures) == kept(CHAIN, structures, forces=True) == [0, 1, 2, 3, 4]
    for level in (0, 2, 5):
        without_energy(structures, 4, level)
    for forces in (False, True):
        with pytest.raises(DataError, match="1 of 5 lack some, CO/1 first"):
            kept(CHAIN, structures, forces)
        assert kept({**CHAIN, "skip_incomplete": True}, structures, forces) == [0, 1, 2, 3]


def test_in_a_chain_forces_of_one_structure_will_do(structures: Structures):
    for index in (0, 1, 2, 4):
        for level in (0, 2, 5):
            without_forces(structures, index, level)
    for level in (0, 2):
        without_forces(structures, 3, level)
    assert kept(CHAIN, structures, forces=True) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("settings", [{"fidelity": 5}, DELTA, CHAIN])
def test_leaving_all_out_is_refused(structures: Structures, settings: Settings):
    structures.energies[:] = np.nan
    with pytest.raises(DataError, match="5 of 5 lack some"):
        kept({**settings, "skip_incomplete": True}, structures)


@pytest.mark.parametrize("below", [None, 1])
@pytest.mark.parametrize("columns", [[2], [0, 2], [2, 0]])
def test_forces_of_some_levels_are_taken_when_asked_for(structures: Structures, columns: list[int], below: int | None):
    without_forces(structures, 1, 5)
    stored = structures.forces
    expected = stored[:, columns] - (0 if below is None else stored[:, [below]])
    found = ForceColumns(stored, columns, below)
    assert (found.shape, len(found)) == (expected.shape, len(expected))
    rows = np.array([3, 0, 3, 11])
    for index in (rows, slice(2, 9), slice(None), (rows, 0), (slice(1, 4), slice(None), 2), rows[:0]):
        np.testing.assert_array_equal(found[index], expected[index], strict=True)
    np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("settings", [{"fidelity": 5}, DELTA])
def test_labels_copy_no_forces(structures: Structures, settings: Settings):
    forces = training_labels(DataConfig(**settings), structures).forces
    assert isinstance(forces, ForceColumns)
    structures.forces[0] += 1
    expected = structures.forces[0, 2] - (structures.forces[0, 0] if "delta" in settings else 0)
    np.testing.assert_array_equal(forces[np.array([0])][0, 0], expected)
    whole = training_labels(DataConfig(**CHAIN), structures)
    assert whole.forces is structures.forces, "all levels in their order are those that are there"


@pytest.mark.parametrize("chunk", [1, 2, 2**14])
@pytest.mark.parametrize("settings", [CHAIN, DELTA])
def test_forces_are_looked_at_some_at_a_time(
    structures: Structures, monkeypatch: pytest.MonkeyPatch, settings: Settings, chunk: int
):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    without_forces(structures, 0, 0)
    without_forces(structures, 4, 5)
    structures.forces[structures.offsets[2] + 1, 1, 2] = np.nan
    found = has_forces(training_labels(DataConfig(**settings), structures))
    expected = [[0, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 0]]
    if settings is DELTA:
        expected = [[a * b] for a, _, b in expected]
    np.testing.assert_array_equal(found, np.array(expected, dtype=bool))
