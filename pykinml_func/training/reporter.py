"""What a run tells as it goes, and who hears it.

# L fidelity levels, m structures of a part of the split, a atoms in them
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from pykinml_func.config import RunConfig
from pykinml_func.data.prepared import Advance, PreparedSet
from pykinml_func.training.setup import RunData
from pykinml_func.types import Params


class Predictions(NamedTuple):
    """Reference and predicted values of one part of the split."""

    energies: np.ndarray
    """(2,m,L) eV, self energies subtracted: references, NaN where absent, then predictions"""
    forces: np.ndarray | None
    """(2,a,L,3) eV/Å"""


class RunResult(NamedTuple):
    """What a run found."""

    directory: Path
    params: Params
    """of the epoch with the least validation RMSE of the energies"""
    history: list[dict[str, float]]
    """a record an epoch"""
    errors: dict[str, dict[str, float]]
    """of train, valid and test with `params`, as `metrics.summary` has them"""
    predictions: dict[str, Predictions]
    """of at most 10,000 structures of each part"""
    labelled: dict[str, list[int]]
    """structures of each part that have an energy, at each level"""
    shapes: int
    """shapes of batches that were recorded, and compiled where steps are"""
    stopped_by: int = 0
    """the signal that ended it before its last epoch; after one other than Ctrl-C there are no errors and predictions,
    since a scheduler gives little time"""


class Setup(NamedTuple):
    """A run as it stands before its first epoch."""

    config: RunConfig
    """with all that follows from the data filled in"""
    data: RunData
    params: Params
    compiled: bool
    ranks: int = 1
    """that train together"""


class Reporter(Protocol):
    """Hears of a run as it goes; `report.console.ConsoleReporter` prints it and draws the figures."""

    def featurizing(self, name: str, total: int) -> Advance:
        """AEVs or Jacobians of `total` structures are about to be computed; returns what hears how many are done."""

    def prepared(self, prepared: PreparedSet, seconds: float) -> None:
        """The prepared set is there."""

    def ready(self, setup: Setup) -> None:
        """The first epoch is next."""

    def epoch(self, record: dict[str, float], epochs: int) -> None:
        """An epoch is done."""

    def finished(self, result: RunResult) -> None:
        """The model is written."""


class SilentReporter:
    """A reporter that says nothing, and the base of those that hear only a part."""

    def featurizing(self, name: str, total: int) -> Advance:  # noqa: ARG002
        """See `Reporter`, as for all methods."""
        return lambda _: None

    def prepared(self, prepared: PreparedSet, seconds: float) -> None:
        """Nothing."""

    def ready(self, setup: Setup) -> None:
        """Nothing."""

    def epoch(self, record: dict[str, float], epochs: int) -> None:
        """Nothing."""

    def finished(self, result: RunResult) -> None:
        """Nothing."""
