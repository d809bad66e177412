"""AEVs and Jacobians of a prepared set on disk: computed a stretch at a time, continued where a process was killed.

What is done lies in `.NAME.npy.part`, and `.NAME.done` has a line a stretch: the structures so far, and the checksum of
their rows, by which a stretch is known to be whole.
# M structures
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pykinml_func.config.aev import AEVConfig
from pykinml_func.data.featurize import fill_aevs, fill_jacobians, jacobian_shape, pair_offsets
from pykinml_func.data.formats.blocks import slice_of
from pykinml_func.data.preparing.checked_arrays import CHECKSUM, ArrayWriter
from pykinml_func.data.preparing.pages import release
from pykinml_func.data.preparing.sole import sole_maker
from pykinml_func.errors import DataError
from pykinml_func.files import write_atomically
from pykinml_func.types import Structures

_STRETCH_BYTES = 2**26


class Features(NamedTuple):
    """What is to be computed of which structures."""

    name: str
    """aevs or jacobians"""
    aev: AEVConfig
    structures: Structures
    backend: str
    precision: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        if self.name == "aevs":
            return int(self.structures.offsets[-1]), self.aev.length
        return jacobian_shape(self.aev, self.structures.sizes)

    @property
    def offsets(self) -> np.ndarray:
        """(M+1,) rows of each structure in it."""
        return self.structures.offsets if self.name == "aevs" else pair_offsets(self.structures.sizes)

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return np.dtype(self.precision).itemsize * int(np.prod(self.shape[1:]))

    def fill(self, start: int, end: int, out: np.ndarray, advance: Callable[[int], None]) -> None:
        """Compute the rows of the structures start to end - 1."""
        fill = fill_aevs if self.name == "aevs" else fill_jacobians
        fill(self.aev, slice_of(self.structures, start, end), self.backend, out, advance)
        release(self.structures.positions)
        release(self.structures.numbers)


def compute(directory: Path, features: Features, advance: Callable[[], Callable[[int], None]]) -> None:
    """Write `NAME.npy` of a set, unless it is there; another process at it is waited for.

    advance: called once there is something to do, for what hears how many structures are done. Raises DataError where
    the disk is too small.
    """
    target = directory / f"{features.name}.npy"
    if target.exists():
        return
    with sole_maker(target):
        if not target.exists():
            _write(target, features, advance)


def _write(target: Path, features: Features, advance: Callable[[], Callable[[int], None]]) -> None:
    part, record = target.with_name(f".{target.name}.part"), target.with_name(f".{features.name}.done")
    _check_space(target, features, part)
    hears, offsets, shape = advance(), features.offsets, features.shape
    with ArrayWriter(part, shape, features.precision) as writer:
        recorded = _pass_over(writer, offsets, record)
        done = recorded[-1][0] if recorded else 0
        hears(done)
        with record.open("w") as lines:
            lines.writelines(f"{end} {checksum}\n" for end, checksum in recorded)
            for start, end in _stretches(offsets, features.row_bytes, done):
                out = np.empty((offsets[end] - offsets[start], *shape[1:]), features.precision)
                features.fill(start, end, out, hears)
                writer.write(out)
                writer.flush()  # before the line that says so
                lines.write(f"{end} {writer.checksum}\n")
                lines.flush()
    checksum = str(writer.checksum)
    write_atomically(target.with_suffix(CHECKSUM), lambda beside: beside.write_text(checksum))
    part.replace(target)
    record.unlink()


def _check_space(target: Path, features: Features, part: Path) -> None:
    needed = features.row_bytes * features.shape[0] - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DataError(
            f"{target} needs {needed / 2**30:.1f} GiB and the disk has {free / 2**30:.1f} GiB free; choose another "
            "directory with --prepared, or take --force-path positions, which stores no Jacobians"
        )


def _pass_over(writer: ArrayWriter, offsets: np.ndarray, record: Path) -> list[tuple[int, int]]:
    """The stretches that are done already: structures so far, checksum. The writer stands behind them then.

    offsets: (M+1,) rows of the structures.
    """
    found: list[tuple[int, int]] = []
    done = 0
    for line in record.read_text().splitlines() if record.exists() else ():
        end, _, checksum = line.partition(" ")
        if not (end.isdecimal() and checksum.isdecimal() and done < int(end) < len(offsets)):
            break
        if not writer.pass_over(int(offsets[int(end)] - offsets[done]), int(checksum)):
            break
        done = int(end)
        found.append((done, int(checksum)))
    return found


def _stretches(offsets: np.ndarray, row_bytes: int, done: int) -> Iterator[tuple[int, int]]:
    """Ends of consecutive structures from `done` on, of about `_STRETCH_BYTES` each. offsets: (M+1,) their rows."""
    most = max(1, _STRETCH_BYTES // row_bytes)
    while done < len(offsets) - 1:
        end = max(done + 1, int(np.searchsorted(offsets, offsets[done] + most, side="right")) - 1)
        yield done, end
        done = end
