"""What may happen to a run in the midst of its batches: a signal, or an exception.

A process that has `faulty/` on its path is struck as the environment variable MISHAP says: the rank, the batch, what.
It then leaves a file `struck`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

from pykinml_func.errors import PyKinMLError
from pykinml_func.training.ranks import Ranks

_ASKED = Ranks.signal_of_any


Striking = Callable[..., None]


def befall(batch: int, *blows: str) -> None:
    """Strike this process when it is about to take its `batch`-th batch, of training and validation alike; from 1.

    blows: names of signals, or of an exception.
    """
    batches = count(1)

    def struck(ranks: Ranks, own: int) -> int:
        if next(batches) == batch:
            for blow in blows:
                _strike(blow)
        return _ASKED(ranks, own)

    Ranks.signal_of_any = struck  # type: ignore[method-assign]


def spare() -> None:
    """Nothing will happen any more."""
    Ranks.signal_of_any = _ASKED  # type: ignore[method-assign]


def _strike(what: str) -> None:
    if "MISHAP" in os.environ:
        Path("struck").touch()  # tells when
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
    elif what == "RuntimeError":
        raise RuntimeError("the code has a fault")
    else:
        raise PyKinMLError("the data have a fault; mend it")
