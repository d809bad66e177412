"""Which structures each member of an ensemble trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pykinml_func.errors import ConfigError

MemberData = Literal["all", "bootstrap", "folds"]


def member_structures(train: np.ndarray, kind: MemberData, seeds: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Of the training structures (k,), in random order, those of each member; as many for all of them.

    kind: `all`; `bootstrap`, k drawn with replacement by the member's seed; `folds`, all but every E-th, of which each
    member leaves out others. Raises ConfigError where there are fewer structures than folds.
    """
    if kind == "all":
        return (train,) * len(seeds)
    if kind == "bootstrap":
        return tuple(train[np.random.default_rng(seed).integers(len(train), size=len(train))] for seed in seeds)
    n_folds = len(seeds)
    if len(train) < n_folds:
        raise ConfigError(
            f"ensemble_data = folds needs a training structure for each of {n_folds} members, got {len(train)}; train "
            "on more, or leave ensemble_data out"
        )
    places = np.arange(len(train))
    # structures beyond the last whole round are in no fold, so that all members have as many
    fold = np.where(places < len(train) // n_folds * n_folds, places % n_folds, -1)
    return tuple(train[fold != place] for place in range(n_folds))
