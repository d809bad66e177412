"""Arrays on disk that are what was written: each is opened against the checksum that was kept of it."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pykinml_func.data.manifest import corrupted

CHECKSUM = ".crc32"
_CHUNK = 2**24


def open_computed(path: Path) -> np.ndarray:
    """The array at `path`, memory-mapped, against the checksum in a file beside it. Raises DataError."""
    try:
        checksum = int(path.with_suffix(CHECKSUM).read_text())
    except (FileNotFoundError, ValueError):
        raise corrupted(path) from None
    return open_array(path, checksum)


def open_array(path: Path, checksum: int) -> np.ndarray:
    """The array at `path`, memory-mapped. Raises DataError where it is not what was written there."""
    try:
        array: np.memmap = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        raise corrupted(path) from None
    with path.open("rb") as file:  # read, not mapped: pages that are looked at once need not stay in memory
        file.seek(array.offset)
        found = _start(array.shape, array.dtype)
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    if found != checksum or not array.flags.c_contiguous:
        raise corrupted(path)
    return array


def _start(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """What the checksum of an array begins with."""
    return zlib.crc32(f"{shape} {dtype}".encode())


class ArrayWriter:
    """A `.npy` file that is written from front to back, with the checksum of what is in it so far.

    The checksum is a CRC-32 of shape, number format and contents. A file that was begun before may be continued after
    the rows that are whole.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype | str) -> None:
        """shape: of the whole array."""
        self._dtype = np.dtype(dtype)
        self._row_bytes = self._dtype.itemsize * math.prod(shape[1:])
        self.checksum = _start(shape, self._dtype)
        self._file = path.open("r+b" if path.exists() else "w+b")
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def pass_over(self, n_rows: int, checksum: int) -> bool:
        """Go on after the next rows, if they are there and bring the checksum to `checksum`. Whether they do."""
        start, found, left = self._file.tell(), self.checksum, n_rows * self._row_bytes
        while left and (chunk := self._file.read(min(left, _CHUNK))):
            found, left = zlib.crc32(chunk, found), left - len(chunk)
        if left or found != checksum:
            self._file.seek(start)
            return False
        self.checksum = found
        return True

    def write(self, rows: np.ndarray) -> None:
        """Add rows."""
        content = np.ascontiguousarray(rows, dtype=self._dtype).reshape(-1).view(np.uint8).data
        self._file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)

    def flush(self) -> None:
        """Hand to the system what was written, so that it is there even if this process is killed."""
        self._file.flush()
