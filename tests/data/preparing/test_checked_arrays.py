"""Arrays written piece by piece: the file that numpy writes, continued where it is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pykinml_func.data.preparing import checked_arrays
from pykinml_func.data.preparing.checked_arrays import ArrayWriter, open_array
from pykinml_func.data.preparing.pages import release
from pykinml_func.errors import DataError

ROWS = np.random.default_rng(0).normal(size=(7, 2, 3))


@pytest.mark.parametrize("array", [ROWS, np.arange(5), np.array(["a", "bcd"]), np.zeros((0, 3)), ROWS.astype("f4")])
def test_the_file_is_the_one_of_numpy(tmp_path: Path, array: np.ndarray):
    np.save(tmp_path / "numpy.npy", array)
    with ArrayWriter(tmp_path / "ours.npy", array.shape, array.dtype) as writer:
        for start in range(0, len(array), 2):
            writer.write(array[start : start + 2])
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    found = open_array(tmp_path / "ours.npy", writer.checksum)
    np.testing.assert_array_equal(found, array)
    release(found)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("change", [lambda c: c[:-8], lambda c: c + b"more", lambda c: c[:-5] + b"\0" + c[-4:]])
@pytest.mark.parametrize("chunk", [5, 2**24])
def test_another_content_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object, chunk: int):
    monkeypatch.setattr(checked_arrays, "_CHUNK", chunk)
    path = tmp_path / "a.npy"
    with ArrayWriter(path, ROWS.shape, ROWS.dtype) as writer:
        writer.write(ROWS)
    assert open_array(path, writer.checksum).shape == ROWS.shape
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"a\.npy is not what was written there"):
        open_array(path, writer.checksum)


@pytest.mark.parametrize("chunk", [5, 2**24])
def test_a_file_is_continued_after_its_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(checked_arrays, "_CHUNK", chunk)
    path, checksums = tmp_path / "a.npy", []
    with ArrayWriter(path, ROWS.shape, ROWS.dtype) as writer:
        for row in ROWS[:4]:
            writer.write(row[None])
            checksums.append(writer.checksum)
    content = bytearray(path.read_bytes())
    content[-48 - 3] ^= 1  # in the third row
    path.write_bytes(content)
    with ArrayWriter(path, ROWS.shape, ROWS.dtype) as writer:
        assert [writer.pass_over(2, checksums[1]), writer.pass_over(1, checksums[2])] == [True, False]
        assert not writer.pass_over(1, checksums[2])
        writer.write(ROWS[2:])
    np.testing.assert_array_equal(open_array(path, writer.checksum), ROWS)
