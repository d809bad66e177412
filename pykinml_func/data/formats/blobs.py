"""Arrays in `.npy` format in the fields of a database, never unpickled.

# K blobs, n atoms of one structure
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from tokenize import TokenError
from typing import Any

import numpy as np

from pykinml_func.errors import DataError

_BROKEN = (ValueError, TypeError, SyntaxError, TokenError)
"""What numpy raises for what is no plain array."""


def blob_of_array(array: np.ndarray) -> bytes:
    """The array in `.npy` format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def array_of_blob(blob: bytes, where: str) -> np.ndarray:
    """The array in a blob. Raises DataError; where: what to call it."""
    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(blob), allow_pickle=False)
    except _BROKEN:
        raise DataError(
            f"{where} must be a plain .npy array; what is there is pickled or broken and is not loaded, since a "
            "pickle can run code: write the row again with numpy.save(..., allow_pickle=False)"
        ) from None
    return array


def stacked_blobs(blobs: Sequence[Any], n_atoms: int) -> np.ndarray | None:
    """(K,n,3) of blobs that are all float64 arrays (n,3) with the same header, or None where one is anything else."""
    if not blobs:
        return np.zeros((0, n_atoms, 3))
    header = _header_length(blobs[0], n_atoms)
    if header is None or set(map(type, blobs)) != {bytes} or set(map(len, blobs)) != {len(blobs[0])}:
        return None
    table = np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(len(blobs), -1)
    if (table[:, :header] != table[0, :header]).any():
        return None
    return table[:, header:].copy().view("<f8").reshape(-1, n_atoms, 3)


def _header_length(blob: Any, n_atoms: int) -> int | None:
    """Bytes before the numbers of a blob that is a float64 array (n,3) and nothing after it."""
    if not isinstance(blob, bytes):
        return None
    stream = io.BytesIO(blob)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            return None
        header = np.lib.format.read_array_header_1_0(stream)
    except _BROKEN:
        return None
    length = stream.tell()
    fits = header == ((n_atoms, 3), False, np.dtype("<f8")) and len(blob) == length + 24 * n_atoms
    return length if fits else None
