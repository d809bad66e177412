"""Signals that ask a run to stop: heard between two batches, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKED_TO_STOP = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
"""Ctrl-C, what schedulers end a job with, and what Slurm warns with beforehand."""


class StopSignals:
    """The last signal that was heard."""

    received = 0
    """0 for none"""

    def hear(self, number: int, _: FrameType | None) -> None:
        """Remember the signal. A second Ctrl-C ends the run at once; schedulers and launchers may repeat theirs."""
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


@contextmanager
def heard_signals() -> Iterator[StopSignals]:
    """Hear signals for a while, in the main thread; in another one there are none to hear."""
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.hear) for number in _ASKED_TO_STOP}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
