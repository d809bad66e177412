from __future__ import annotations

from pathlib import Path

import pytest

from pykinml_func.files import write_atomically


def interrupted(path: Path) -> None:
    path.write_text("half of")
    raise OSError("disk full")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "model.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, interrupted)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_write_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "model.txt", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_readers_meet_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("new")
        assert target.read_text() == "old"

    write_atomically(target, write)
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]
