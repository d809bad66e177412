"""How a command ends: the codes that it ends with, and which of a run's ranks says so."""

from __future__ import annotations

import os
from typing import Literal

BAD_INPUT, RESUME_ME, PEER_FAILED, INTERRUPTED = 2, 75, 1, 130
"""Exit codes; that of a run which was stopped and can be resumed is EX_TEMPFAIL of sysexits.h: try again later."""


def is_first(number: Literal["RANK", "LOCAL_RANK"]) -> bool:
    """Whether this process is the first rank of all, or of its machine; also where there is one alone."""
    return os.environ.get(number, "0") == "0"
