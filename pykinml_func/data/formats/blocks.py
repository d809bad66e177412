"""Structures block by block, as every reader gives them, so that a file of any size passes through little memory.

# M structures, A atoms in all of them, L fidelity levels
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pykinml_func.data.formats.rows import Query, Row, checked, some
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

BLOCK_ROWS = 10_000
BLOCK_ATOMS = 400_000
"""A block has no more structures than this, and atoms of little more: 3 MB of C5H5, 20 MB of large molecules."""


class Found(NamedTuple):
    """What a stretch of a file gave."""

    structures: Structures
    n_unlabelled: int
    """structures left out for want of an energy"""
    note: str = ""
    """on the whole file"""


def select(rows: Iterable[tuple[str, Row]], query: Query, note: str = "") -> Iterator[Found]:
    """The rows that the query asks for, checked, in blocks. rows: each with what errors call it."""
    kept: list[Row] = []
    n_atoms = n_unlabelled = 0
    for where, row in rows:
        if not query.admits(row):
            continue
        if query.labels and not row.labels:
            n_unlabelled += 1
            continue
        kept.append(checked(row, where))
        n_atoms += len(row.numbers)
        if len(kept) == BLOCK_ROWS or n_atoms >= BLOCK_ATOMS:
            yield Found(gathered(kept, query), n_unlabelled, note)
            kept, n_atoms, n_unlabelled = [], 0, 0
    yield Found(gathered(kept, query), n_unlabelled, note)


def gathered(rows: Sequence[Row], query: Query) -> Structures:
    """The rows as one block, with the levels of the query, or those that there are where it names none."""
    wanted = query.levels if query.labels else ()
    levels = sorted({level for row in rows for level in row.labels} if wanted is None else set(wanted))
    offsets = np.concatenate([[0], np.cumsum([len(row.numbers) for row in rows], dtype=np.int64)])
    energies = np.full((len(rows), len(levels)), np.nan)
    forces = np.full((offsets[-1], len(levels), 3), np.nan)
    for m, row in enumerate(rows):
        for level, (value, force) in row.labels.items():
            energies[m, levels.index(level)] = value
            if force is not None:
                forces[offsets[m] : offsets[m + 1], levels.index(level)] = force
    return Structures(
        np.concatenate([np.zeros(0, dtype=np.int64), *(row.numbers for row in rows)]),
        np.concatenate([np.zeros((0, 3)), *(row.positions for row in rows)]),
        offsets,
        np.array(levels, dtype=int),
        energies,
        forces,
        np.array([row.id for row in rows], dtype=str),
        np.array([row.name for row in rows], dtype=str),
        np.array([row.temperature for row in rows], dtype=np.float64),
    )


def joined(blocks: Sequence[Structures]) -> Structures:
    """Blocks end to end, with all the levels that any of them has."""
    levels = np.unique(np.concatenate([block.levels for block in blocks]))
    sizes = np.concatenate([block.sizes for block in blocks])
    return Structures(
        np.concatenate([block.numbers for block in blocks]),
        np.concatenate([block.positions for block in blocks]),
        np.concatenate([[0], np.cumsum(sizes)]),
        levels,
        np.concatenate([_at_levels(block.energies, block.levels, levels) for block in blocks]),
        np.concatenate([_at_levels(block.forces, block.levels, levels) for block in blocks]),
        *(np.concatenate([getattr(block, name) for block in blocks]) for name in ("ids", "names", "temperatures")),
    )


def _at_levels(labels: np.ndarray, own: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Labels (k,l,...) of the levels `own` (l,) among the columns of `levels` (L,); NaN in the others."""
    out = np.full((len(labels), len(levels), *labels.shape[2:]), np.nan)
    out[:, np.searchsorted(levels, own)] = labels
    return out


def slice_of(structures: Structures, start: int, end: int) -> Structures:
    """The structures start to end - 1; views of the same arrays but for the offsets."""
    atoms = slice(structures.offsets[start], structures.offsets[end])
    return Structures(
        structures.numbers[atoms],
        structures.positions[atoms],
        structures.offsets[start : end + 1] - structures.offsets[start],
        structures.levels,
        structures.energies[start:end],
        structures.forces[atoms],
        structures.ids[start:end],
        structures.names[start:end],
        structures.temperatures[start:end],
    )


def check_found(
    n_structures: int, absent: Sequence[str], query: Query, paths: Sequence[Path], holds: Callable[[Path], str]
) -> None:
    """Raises DataError where wanted ids are absent, or nothing was found. holds: what a file has, for the message."""
    if absent:
        raise DataError(
            f"{len(absent)} of {len(query.ids or ())} structures are not in the input with these filters: "
            f"{some(absent)}; add their files to input, or drop their lines from the split files"
        )
    if n_structures == 0:
        kelvin = "any" if query.temperature is None else f"{query.temperature:g}"
        raise DataError(
            f"no structure of {', '.join(map(str, paths))} passes the filters (fidelity "
            f"{some(query.levels or ['any'])}, names {some(query.names or ['any'])}, temperature {kelvin}); "
            f"the files hold {'; '.join(map(holds, paths))}"
        )


def collect(found: Iterable[Found], query: Query, paths: Sequence[Path], holds: Callable[[Path], str]) -> Structures:
    """All that was found, in memory; raises DataError as `check_found` does."""
    blocks = [one.structures for one in found if one.structures.n_structures]
    ids = {name for block in blocks for name in block.ids.tolist()} if query.ids else set()
    check_found(len(blocks), sorted(set(query.ids or ()) - ids), query, paths, holds)
    return joined(blocks)
