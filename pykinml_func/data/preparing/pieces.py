"""The input cut into pieces, each of which is read by itself, and is on disk whole or not at all.

A piece is a stretch of a database, a file of another format, or several small ones in a row. Its structures lie in
`0.npz`, `1.npz` and so on, a block each, beside `record.json`, in a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import numpy as np

from pykinml_func.data.formats.blocks import BLOCK_ATOMS, BLOCK_ROWS, joined
from pykinml_func.data.formats.database_reader import Span, database_spans
from pykinml_func.data.formats.rows import Query, source_label
from pykinml_func.data.formats.sources import FORMATS
from pykinml_func.data.preparing.tally import Tally, sum_tallies, tally
from pykinml_func.types import Structures

_BYTES_A_ROW = 1000
"""Of a file whose structures are not counted beforehand; so many hold about one small molecule."""

_COSTS = {"ase": 60, "ani": 10, "aev": 10, "pca": 10}
"""Rows of a database that are read in the time of one structure of another format: 7 us each."""

_RECORD = "record.json"
_CHARACTER = np.dtype("U1").itemsize


class Part(NamedTuple):
    """What is read of a file."""

    path: Path
    form: str
    """as `sources.input_format` has it"""
    span: Span | None
    """None: all of it"""


class Piece(NamedTuple):
    """What is read at a time, by one process."""

    parts: tuple[Part, ...]
    query: Query
    n_expected: int
    """structures that pass the filters, as far as that is known"""
    size: int
    """rows of a database that are read in the same time"""

    @property
    def name(self) -> str:
        """Of its folder: the same wherever the files lie."""
        parts = [[source_label(part.path), part.span] for part in self.parts]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class Record(NamedTuple):
    """What is in a piece."""

    tallies: tuple[tuple[str, Tally], ...]
    """of each of its files, by path"""
    n_blocks: int
    n_atoms: int
    id_length: int
    name_length: int
    """characters of the longest"""
    numbers: tuple[int, ...]
    """atomic numbers that occur"""

    @property
    def n_read(self) -> int:
        """Structures that pass the filters."""
        return sum(one.n_structures + one.n_unlabelled for _, one in self.tallies)


def plan_pieces(formats: Mapping[Path, str], query: Query) -> list[Piece]:
    """The pieces of files of these formats, in the order of their structures. Raises DataError."""
    ids = _ids_by_label(query.ids or ())
    pieces: list[Piece] = []
    for path, form in formats.items():
        for piece in _pieces_of(path, form, query, ids.get(source_label(path), [])):
            if pieces and pieces[-1].size + piece.size <= BLOCK_ROWS:
                pieces[-1] = _merged(pieces[-1], piece)
            else:
                pieces.append(piece)
    return pieces


def _ids_by_label(ids: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """label -> its ids, each after its number, in the order of these; what has no number counts as 0."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in ids:
        label, _, number = name.rpartition("/")
        found.setdefault(label, []).append((int(number) if number.isdecimal() else 0, name))
    return {label: sorted(numbered) for label, numbered in found.items()}


def _pieces_of(path: Path, form: str, query: Query, ids: list[tuple[int, str]]) -> Iterator[Piece]:
    """Of one file, as small as they can be. ids: of this file, numbered, where the query has some."""
    if form != "sqlite":
        number = FORMATS[form].counted(path, query)
        size = (number or path.stat().st_size // _BYTES_A_ROW) * _COSTS[form]
        yield Piece((Part(path, form, None),), _asking_for(query, ids), number, size)
        return
    for span in database_spans(path, query):
        first, after = (bisect_left(ids, number, key=itemgetter(0)) for number in (span.first, span.last + 1))
        own = _asking_for(query, ids[first:after])
        yield Piece((Part(path, form, span),), own, span.n_passing, span.n_passing)


def _asking_for(query: Query, ids: list[tuple[int, str]]) -> Query:
    return query if query.ids is None else query._replace(ids={name for _, name in ids})


def _merged(first: Piece, second: Piece) -> Piece:
    query = first.query
    if query.ids is not None:
        query = query._replace(ids={*query.ids, *(second.query.ids or ())})
    return Piece(first.parts + second.parts, query, first.n_expected + second.n_expected, first.size + second.size)


def piece_as_json(piece: Piece) -> str:
    """One line, for another process."""
    parts = [(str(part.path), part.form, part.span) for part in piece.parts]
    ids = None if piece.query.ids is None else list(piece.query.ids)
    return json.dumps([parts, piece.query._replace(ids=ids), piece.n_expected, piece.size])


def piece_of_json(line: str) -> Piece:
    """The same piece."""
    parts, asked, n_expected, size = json.loads(line)
    query = Query(*asked)
    found = tuple(Part(Path(path), form, None if span is None else Span(*span)) for path, form, span in parts)
    return Piece(found, query if query.ids is None else query._replace(ids=set(query.ids)), n_expected, size)


def write_piece(piece: Piece, folder: Path) -> None:
    """Read a piece into `folder`, under its name, which it gets when all is there. Raises DataError."""
    temporary = Path(mkdtemp(prefix="reading.", dir=folder))
    try:
        _write(piece, temporary)
        if not (folder / piece.name).exists():  # of a process whose parent was killed
            temporary.rename(folder / piece.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(piece: Piece, folder: Path) -> None:
    tallies: dict[str, Tally] = {}
    numbers: set[int] = set()
    n_blocks = n_atoms = id_length = name_length = 0
    for block in _packed(_read(piece, tallies)):
        np.savez(folder / f"{n_blocks}.npz", **block._asdict())
        numbers.update(np.unique(block.numbers).tolist())
        n_blocks, n_atoms = n_blocks + 1, n_atoms + len(block.numbers)
        id_length = max(id_length, block.ids.dtype.itemsize // _CHARACTER)
        name_length = max(name_length, block.names.dtype.itemsize // _CHARACTER)
    record = Record(tuple(tallies.items()), n_blocks, n_atoms, id_length, name_length, tuple(sorted(numbers)))
    (folder / _RECORD).write_text(json.dumps(record))


def _read(piece: Piece, tallies: dict[str, Tally]) -> Iterator[Structures]:
    """The blocks of a piece that are not empty; `tallies` gets the numbers of each file, by label."""
    for part in piece.parts:
        label, span = source_label(part.path), () if part.span is None else (part.span,)
        tallies.setdefault(label, Tally())
        for found in FORMATS[part.form].read(part.path, piece.query, *span):
            tallies[label] = sum_tallies([tallies[label], tally(found)])
            if found.structures.n_structures:
                yield found.structures


def _packed(blocks: Iterable[Structures]) -> Iterator[Structures]:
    """The same structures, small blocks put together."""
    held: list[Structures] = []
    for block in blocks:
        together = [*held, block]
        n_rows, n_atoms = (sum(map(count, together)) for count in (lambda b: b.n_structures, lambda b: len(b.numbers)))
        if held and (n_rows > BLOCK_ROWS or n_atoms > BLOCK_ATOMS):
            yield joined(held)
            together = [block]
        held = together
    if held:
        yield joined(held)


def read_record(folder: Path) -> Record:
    """What is in the piece in `folder`."""
    tallies, *rest = json.loads((folder / _RECORD).read_text())
    found = tuple((label, Tally(*one)) for label, one in tallies)
    return Record(found, *rest)


def read_blocks(folder: Path) -> Iterator[Structures]:
    """The structures of the piece in `folder`, a block at a time."""
    for k in range(read_record(folder).n_blocks):
        with np.load(folder / f"{k}.npz", allow_pickle=False) as block:
            yield Structures(*(block[name] for name in Structures._fields))
