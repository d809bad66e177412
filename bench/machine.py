"""What a benchmark writes beside its figures: the versions and the machine that they were measured with."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from pykinml_func.version import __version__


def machine() -> dict[str, str]:
    """Versions of this package, Python and torch, and the processor's name."""
    versions = {"pykinml_func": __version__, "python": platform.python_version(), "torch": torch.__version__}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {**versions, "cpu": _cpu(), **gpu}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
