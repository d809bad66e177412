"""Pieces put together to the arrays of a prepared set.

Each field of all structures is one array in one file: what reads a set is simple, and pieces are none of its business.
They are copied block by block, so that no array is ever in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pykinml_func.data.preparing.checked_arrays import ArrayWriter
from pykinml_func.data.preparing.pieces import Record, read_blocks
from pykinml_func.types import Structures


def join_pieces(
    folders: Sequence[Path], records: Sequence[Record], levels: Sequence[int], directory: Path
) -> dict[str, int]:
    """Write the structures of the pieces in `folders` as the arrays of a set in `directory`; their checksums.

    levels: (L,) of every piece, ascending.
    """
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ArrayWriter(directory / f"{name}.npy", shape, dtype))
            for name, (shape, dtype) in _layout(records, len(levels)).items()
        }
        n_atoms = 0
        writers["offsets"].write(np.zeros(1))
        writers["levels"].write(np.array(levels))
        for folder in folders:
            for block in read_blocks(folder):
                moved = block._replace(offsets=block.offsets[1:] + n_atoms, levels=block.levels[:0])
                for name, writer in writers.items():
                    writer.write(getattr(moved, name))
                n_atoms += len(block.numbers)
        return {name: writer.checksum for name, writer in writers.items()}


def _layout(records: Sequence[Record], n_levels: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and number format of each array."""
    m = sum(one.n_structures for record in records for _, one in record.tallies)
    a = sum(record.n_atoms for record in records)
    characters = {name: max(getattr(record, name) for record in records) for name in ("id_length", "name_length")}
    whole, real = np.dtype(np.int64), np.dtype(np.float64)
    layout = {
        "numbers": ((a,), whole),
        "positions": ((a, 3), real),
        "offsets": ((m + 1,), whole),
        "levels": ((n_levels,), whole),
        "energies": ((m, n_levels), real),
        "forces": ((a, n_levels, 3), real),
        "ids": ((m,), np.dtype(f"U{characters['id_length']}")),
        "names": ((m,), np.dtype(f"U{characters['name_length']}")),
        "temperatures": ((m,), real),
    }
    return {name: layout[name] for name in Structures._fields}
