from __future__ import annotations

import numpy as np
import pytest

from pykinml_func.data.members import member_structures
from pykinml_func.errors import ConfigError

TRAIN = np.random.default_rng(0).permutation(1000)[:103]


def test_all_members_see_all() -> None:
    assert all(np.array_equal(own, TRAIN) for own in member_structures(TRAIN, "all", (3, 4)))


def test_a_bootstrap_draws_as_many_with_replacement_by_each_seed() -> None:
    """Each leaves out a share of 1/e."""
    drawn = member_structures(TRAIN, "bootstrap", range(200))
    assert {len(own) for own in drawn} == {len(TRAIN)} and set(np.concatenate(drawn)) == set(TRAIN)
    left_out = [1 - len(set(own)) / len(TRAIN) for own in drawn]
    assert np.mean(left_out) == pytest.approx(np.exp(-1), abs=0.01)
    assert np.array_equal(drawn[7], member_structures(TRAIN, "bootstrap", (7,))[0])


def test_each_fold_is_left_out_by_one_member_alone() -> None:
    folds = [set(TRAIN) - set(own) for own in member_structures(TRAIN, "folds", range(5))]
    assert [len(fold) for fold in folds] == [20] * 5
    assert len(set.union(*folds)) == 100


def test_folds_need_structures() -> None:
    with pytest.raises(ConfigError, match=r"a training structure for each of 4 members, got 3"):
        member_structures(TRAIN[:3], "folds", range(4))
