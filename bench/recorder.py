"""Epochs of `fit` as users run it, timed or profiled from the reporter that it talks to."""

from __future__ import annotations

import signal
import statistics
from typing import TYPE_CHECKING

from pykinml_func.training.reporter import SilentReporter

if TYPE_CHECKING:
    from torch.profiler import profile


class Recorder(SilentReporter):
    """Keeps the seconds of each epoch; ends the run after some as Ctrl-C does; may profile the last."""

    def __init__(self, warm: int, epochs: int, profiler: profile | None = None) -> None:
        """warm: epochs before those that count, in which shapes are recorded and compiled."""
        self._warm, self._last, self._profiler = warm, warm + epochs, profiler
        self._all: list[float] = []

    @property
    def seconds(self) -> list[float]:
        """Of the epochs that count."""
        return self._all[self._warm : self._last]

    @property
    def first(self) -> float:
        """Seconds of the first of all."""
        return self._all[0]

    @property
    def median(self) -> float:
        """Of those."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Longest less shortest of those."""
        return max(self.seconds) - min(self.seconds)

    def epoch(self, record: dict[str, float], epochs: int) -> None:  # noqa: ARG002
        """See `Reporter`. Ends the run after the last, and after one more where that is profiled."""
        self._all.append(record["seconds"])
        if len(self._all) < self._last:
            return
        if self._profiler is None:
            signal.raise_signal(signal.SIGINT)
            return
        if len(self._all) == self._last:
            self._profiler.start()
            return
        self._profiler.stop()
        signal.raise_signal(signal.SIGINT)
