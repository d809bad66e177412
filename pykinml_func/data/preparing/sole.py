"""One process at a time makes a thing; the others wait, and find it made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def sole_maker(path: Path) -> Iterator[None]:
    """Be the only process that makes `path`, whose folder must be there: wait for one that is at it.

    The lock goes with the process that holds it, however that ends.
    """
    from filelock import FileLock

    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows removes no open file
                lock.unlink(missing_ok=True)
