"""A run directory: kept to one run, cleared of what a replaced run left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pykinml_func.errors import ConfigError


@contextmanager
def claimed(directory: Path, overwrite: bool) -> Iterator[None]:
    """Keep a run directory to one run, and what is in it safe unless `overwrite`. Raises ConfigError."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"output must be a directory, got the file {directory}; choose another with --output")
    if (directory / "config.toml").exists() and not overwrite:
        raise ConfigError(
            f"{directory} already holds a run; choose another with --output, or replace it with --overwrite"
        )
    ours = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    claim = directory / "running"
    lock = FileLock(claim)  # which the system lets go of where a run is killed
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"{directory} is being written by another run; choose another with --output") from None
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)
        lock.release()
        for path in ours:
            if any(path.iterdir()):
                break
            path.rmdir()


def clear(directory: Path) -> None:
    """Remove what a replaced run left, so that no file of it passes for one of the new run."""
    for name in ("model.safetensors", "metrics.jsonl", "*.png", "checkpoints/epoch_*.safetensors"):
        for path in directory.glob(name):
            path.unlink()
