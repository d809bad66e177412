"""A command, and the memory of all processes that it starts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.peers.process import worker_variables

_INTERVAL = 0.2


class Watched(NamedTuple):
    """What a command took."""

    seconds: float
    """from its start to its end"""
    peak_bytes: list[int]
    """the most memory that each of its processes held, the largest first; mapped files count as far as they are in
    memory
    """


def watch(arguments: Sequence[str], folder: Path, threads: int) -> Watched:
    """Run `python ARGUMENTS` in a folder. Raises CalledProcessError where it fails."""
    started, command = time.perf_counter(), [sys.executable, *arguments]
    peaks: dict[int, int] = {}
    with (folder / "watched.log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, env=worker_variables("own", threads), stdout=log, stderr=log)
        while not _has_ended(process):
            _look(process.pid, peaks)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Watched(seconds, sorted(peaks.values(), reverse=True))


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it did within an interval."""
    try:
        process.wait(_INTERVAL)
    except subprocess.TimeoutExpired:
        return False
    return True


def _look(pid: int, peaks: dict[int, int]) -> None:
    """Take down the peaks of a process and its children so far."""
    try:
        everyone = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return
    for each in everyone:
        found = peak_of(each)
        if found:
            peaks[each] = max(found, peaks.get(each, 0))


def peak_of(pid: int) -> int:
    """The most memory that a process has held, as Linux keeps account of it; 0 for one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = (line.split() for line in status.splitlines())
    return next((1024 * int(line[1]) for line in lines if line[0] == "VmHWM:"), 0)
