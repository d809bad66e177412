"""The worker's side: one JSON request a line on stdin, one JSON answer a line on stdout. Standard library only.

A request is {"task": name, ...options}; its answer is what the task returns, {"seconds": 0.02} say, with the process's
peak memory, or {"unavailable": what the tool raised}.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Task = Callable[..., Answer]


def serve(start: Callable[[], Mapping[str, Task]]) -> None:
    """Answer requests until stdin ends. start: imports the tool and returns its tasks, by name."""
    # What libraries print goes to stderr: stdout is for answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    tasks: Mapping[str, Task] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            tasks = tasks or {"versions": _versions, **start()}
            answer = tasks[request.pop("task")](**request)
        except Exception as error:  # whatever a tool raises is its answer, and stands in the results
            traceback.print_exc()
            answer = {"unavailable": _short(error)}
        answers.write(json.dumps({**answer, "peak_bytes": peak_bytes()}) + "\n")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _versions() -> Answer:
    return {"versions": {found.name.lower(): found.version for found in distributions() if found.name}}


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts what the parent held at the start into a child's ru_maxrss; VmHWM is its own
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_of_calls(work: Callable[[], Any], calls: int) -> float:
    """Median seconds of a call, after a quarter as many that warm up."""
    for _ in range(max(1, calls // 4)):
        work()
    return statistics.median(timed(work) for _ in range(calls))
