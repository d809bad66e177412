"""Making a prepared set: its pieces are read, checked as a whole, and joined; what a killed process had read is kept.

All is done in a hidden folder beside the set, which is renamed when it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from pykinml_func.config.aev import AEVConfig
from pykinml_func.data.elements import ordered_elements, species_of
from pykinml_func.data.formats.blocks import check_found
from pykinml_func.data.formats.rows import Query, source_label
from pykinml_func.data.formats.sources import contents, source_lines
from pykinml_func.data.manifest import MANIFEST, Manifest, write_manifest
from pykinml_func.data.preparing.joining import join_pieces
from pykinml_func.data.preparing.piece_workers import read_pieces
from pykinml_func.data.preparing.pieces import Piece, Record, plan_pieces, read_blocks, read_record
from pykinml_func.data.preparing.sole import sole_maker
from pykinml_func.data.preparing.tally import Tally, check_levels, sum_tallies
from pykinml_func.errors import PyKinMLError
from pykinml_func.types import Structures


class Reading(NamedTuple):
    """What is read, and how."""

    formats: Mapping[Path, str]
    """of the input files, in their order"""
    query: Query
    workers: int
    """processes at most; 0: one a core"""
    announce: Callable[[int], Callable[[int], None]]
    """hears how many structures there are, as far as that is known, and returns what hears how many are read"""

    @property
    def levels(self) -> list[int]:
        """Ascending."""
        return sorted(set(self.query.levels or ()))


def make_set(path: Path, made_by: dict[str, Any], aev: AEVConfig, reading: Reading) -> bool:
    """Make the set at `path`, unless it is there; another process at it is waited for. Whether it was there.

    made_by: of its manifest. Raises DataError, and nothing is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.part")
    try:
        with sole_maker(path):
            if (path / MANIFEST).exists():
                return True
            try:
                _make(work, made_by, aev, reading)
            except PyKinMLError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            if path.exists():  # without a manifest
                shutil.rmtree(path)
            (work / "set").rename(path)
            shutil.rmtree(work, ignore_errors=True)
            return False
    except PyKinMLError:
        remove_if_empty(path.parent)
        raise


def remove_if_empty(directory: Path) -> None:
    """Remove a directory, unless it holds something or is gone."""
    with suppress(OSError):
        directory.rmdir()


def _make(work: Path, made_by: dict[str, Any], aev: AEVConfig, reading: Reading) -> None:
    """Write the set as `set` in `work`."""
    folder, whole = work / "pieces", work / "set"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    pieces = plan_pieces(reading.formats, reading.query)
    _read(pieces, folder, reading)
    folders = [folder / piece.name for piece in pieces]
    records = [read_record(each) for each in folders]
    tallies = _tallies(reading, records)
    _check(reading, tallies, folders)
    symbols = {chemical_symbols[number] for record in records for number in record.numbers}
    aev = aev.model_copy(update={"elements": aev.elements or ordered_elements(symbols)})
    checksums = join_pieces(folders, records, reading.levels, whole)
    if not symbols <= set(aev.elements):
        arrays = (np.load(whole / f"{name}.npy", mmap_mode="r") for name in Structures._fields)
        species_of(aev.elements, Structures(*arrays))  # raises the error that names the first such structure
    write_manifest(whole, Manifest(made_by, aev, checksums, source_lines(reading.formats, tallies)))


def _read(pieces: Sequence[Piece], folder: Path, reading: Reading) -> None:
    """Read the pieces that are not there."""
    advance = reading.announce(sum(piece.n_expected for piece in pieces))
    left = []
    for piece in pieces:
        if (folder / piece.name).exists():
            advance(read_record(folder / piece.name).n_read)
        else:
            left.append(piece)
    for piece in read_pieces(left, folder, reading.workers):
        advance(read_record(folder / piece.name).n_read)


def _tallies(reading: Reading, records: Sequence[Record]) -> dict[Path, Tally]:
    """The numbers of each file."""
    found: dict[str, list[Tally]] = {}
    for record in records:
        for label, one in record.tallies:
            found.setdefault(label, []).append(one)
    return {path: sum_tallies(found.get(source_label(path), [])) for path in reading.formats}


def _check(reading: Reading, tallies: Mapping[Path, Tally], folders: Sequence[Path]) -> None:
    """Raises DataError where something that was asked for is not there."""
    paths, holds = list(reading.formats), contents(reading.formats, reading.query)
    absent = set(reading.query.ids or ())
    for folder in folders if absent else ():
        for block in read_blocks(folder):
            absent.difference_update(block.ids.tolist())
    n_structures = sum(one.n_structures for one in tallies.values())
    check_found(n_structures, sorted(absent), reading.query, paths, holds)
    check_levels(reading.levels, tallies.values(), holds, paths)
