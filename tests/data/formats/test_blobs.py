"""Arrays in blobs: many at once only where all are alike."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pykinml_func.data.formats.blobs import array_of_blob, blob_of_array, stacked_blobs
from pykinml_func.errors import DataError

ARRAYS = np.random.default_rng(0).normal(size=(4, 5, 3))


def test_blobs_are_what_was_written():
    blobs = [blob_of_array(each) for each in ARRAYS]
    found = stacked_blobs(blobs, 5)
    assert found is not None
    np.testing.assert_array_equal(found, ARRAYS)
    np.testing.assert_array_equal(array_of_blob(blobs[2], "it"), ARRAYS[2])
    assert found.flags.writeable and found.flags.aligned


def version_2(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(2, 0))
    return stream.getvalue()


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    "odd",
    [
        None,
        "text",
        b"",
        b"\x93NUMPY\x01\x00\x20\x00{'descr': '<f8', 'shape': (5, 3 ",
        blob_of_array(ARRAYS[0]) + b"more",
        blob_of_array(ARRAYS[0])[:-8],
        blob_of_array(ARRAYS[0].astype(">f8")),
        blob_of_array(ARRAYS[0].astype(np.int64)),
        blob_of_array(np.asfortranarray(ARRAYS[0])),
        blob_of_array(ARRAYS[0].T.copy()),
        version_2(ARRAYS[0]),
    ],
)
def test_anything_else_is_left_to_the_careful_way(odd: object, place: int):
    blobs: list[object] = [blob_of_array(each) for each in ARRAYS]
    blobs[place] = odd
    assert stacked_blobs(blobs, 5) is None


def test_no_blobs_are_no_arrays():
    found = stacked_blobs([], 5)
    assert found is not None and found.shape == (0, 5, 3)
    with pytest.raises(DataError, match=r"^it must be a plain \.npy array"):
        array_of_blob(b"PK\x03\x04", "it")
