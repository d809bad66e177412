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


@pytest.mark.parametrize("name", ["folder", "nowhere/model.txt", "file/model.txt"])
def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    target = tmp_path / name
    with pytest.raises(OSError, match=name) as raised:
        write_atomically(target, lambda path: path.write_text("new"))
    assert (raised.value.filename, raised.value.filename2) == (str(target), None)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file", "folder"]


def test_an_error_of_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        write_atomically(tmp_path / "copy.txt", lambda _: (tmp_path / "none.txt").read_text())
    assert raised.value.filename.endswith("none.txt")


def test_readers_meet_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("new")
        assert target.read_text() == "old"

    write_atomically(target, write)
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]
