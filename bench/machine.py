"""What a benchmark writes: its figures, below the versions and the machine that they were measured with."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from pykinml_func.files import write_atomically
from pykinml_func.version import __version__


def machine() -> dict[str, str | int | None]:
    """Versions of this package, Python and torch, the processor's name, and how many processors there are."""
    versions = {"pykinml_func": __version__, "python": platform.python_version(), "torch": torch.__version__}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {**versions, "cpu": _cpu(), "cpus": os.cpu_count(), **gpu}


def write_report(path: Path | None, command: str, figures: dict[str, Any]) -> None:
    """Write figures as JSON, if there is a path, below the machine and the command that made them.

    command: without --json, which is added, of an absolute path the file's name alone: the folders of a machine say
    nothing on another.
    """
    if path is None:
        return
    written = path.name if path.is_absolute() else path
    report = {"command": f"{command} --json {written}", **machine(), **figures}
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(report, indent=1) + "\n"))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
