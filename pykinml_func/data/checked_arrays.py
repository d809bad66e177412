"""Arrays on disk that are what was written: each is opened against the checksum that was kept of it."""

from __future__ import annotations

import zlib
from pathlib import Path

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
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        raise corrupted(path) from None
    if checksum_of(array) != checksum:
        raise corrupted(path)
    return array


def checksum_of(array: np.ndarray) -> int:
    """CRC-32 of shape, number format and contents."""
    checksum = zlib.crc32(f"{array.shape} {array.dtype}".encode())
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK):
        checksum = zlib.crc32(flat[start : start + _CHUNK].data, checksum)
    return checksum
