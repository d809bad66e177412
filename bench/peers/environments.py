"""A virtual environment a peer, in the user's cache, made when first needed and again when its requirements change."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs

from pykinml_func.errors import PyKinMLError

PEERS = ("pykinml", "torchani", "fennol")
_HERE = Path(__file__).parent


def requirements(name: str) -> Path:
    """The file of a peer's pinned packages."""
    return _HERE / f"requirements-{name}.txt"


def environment(name: str, say: Callable[[str], None], cache: Path | None = None) -> Path:
    """The Python of a peer's environment. Raises PyKinMLError where it cannot be made.

    cache: where environments are kept; default: the user's cache directory.
    """
    folder = (cache or platformdirs.user_cache_path("pykinml-func") / "peers") / name
    stamp, wanted = folder / "requirements.sha256", _digest(name)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    say(f"making the environment of {name} in {folder}: some minutes, once")
    shutil.rmtree(folder, ignore_errors=True)
    for arguments in _steps(name, folder, python):
        done = subprocess.run(arguments, check=False, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise PyKinMLError(_refusal(name, arguments, done.stdout + done.stderr))
    stamp.write_text(wanted)
    return python


def _steps(name: str, folder: Path, python: Path) -> list[list[str]]:
    install = [str(python), "-m", "pip", "install", "--quiet"]
    # torch by itself first, so that no resolution of the others replaces it by another build
    torch = [line for line in requirements(name).read_text().splitlines() if line.startswith("torch==")]
    steps = [[sys.executable, "-m", "venv", str(folder)]]
    steps += [[*install, *torch]] if torch else []
    return [*steps, [*install, "-r", str(requirements(name))]]


def _refusal(name: str, arguments: list[str], output: str) -> str:
    last = "\n".join(output.strip().splitlines()[-3:])
    return (
        f"the environment of {name} cannot be made: `{' '.join(arguments[1:])}` failed with\n{last}\n"
        f"mend {requirements(name).name} or the network, or measure a row that {name} has no part in with --only"
    )


def _digest(name: str) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}\n"
    return hashlib.sha256(version.encode() + requirements(name).read_bytes()).hexdigest()
