"""Pools that structures are selected from, and the selected as files: extended XYZ, or their ids as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ase import Atoms

from pykinml_func.data.formats.rows import source_label
from pykinml_func.data.formats.sources import input_format, read_structures
from pykinml_func.errors import DataError
from pykinml_func.files import write_atomically
from pykinml_func.inference.prediction_files import bare_copy, check_output

_IDS = ".txt"


def read_pool(paths: Iterable[Path]) -> list[Atoms]:
    """Every structure of files of any format, with the id that `pykinml train` would give it in `info["id"]`.

    paths: of `find_inputs`, by which ids are unique. Raises DataError for a file that is empty, or cannot be read.
    """
    pool = []
    for path in paths:
        images = read_structures([path])
        if input_format(path) == "ase":
            for place, atoms in enumerate(images, start=1):
                atoms.info["id"] = f"{source_label(path)}/{place}"
        pool += images
    return pool


def ids_of(images: Iterable[Atoms]) -> list[str]:
    """Those of structures of `read_pool`."""
    return [str(atoms.info["id"]) for atoms in images]


def check_selection(path: Path) -> None:
    """Raises DataError for a name that is neither of text nor of extended XYZ."""
    if path.suffix != _IDS:
        check_output(path)


def write_selection(path: Path, images: Sequence[Atoms]) -> None:
    """Write geometries as extended XYZ, or in a .txt their ids, one a line; whole or not at all.

    Labels of the highest level are left out, which are yet to be made. Raises DataError where `path` cannot be written.
    """
    try:
        if path.suffix == _IDS:
            text = "".join(f"{name}\n" for name in ids_of(images))
            write_atomically(path, lambda temporary: temporary.write_text(text))
            return
        import ase.io

        frames = [bare_copy(atoms) for atoms in images]
        write_atomically(path, lambda temporary: ase.io.write(temporary, frames, format="extxyz"))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
