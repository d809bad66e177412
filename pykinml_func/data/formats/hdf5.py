"""PyKinML's HDF5 files of AEVs, or of their principal components: geometries and labels are read, AEVs computed anew.

One group, `Base_Group`: `symbols` and `xp` (Å) hold the atoms in the order of their source, structure m's from xip[m]
to xfp[m]; `yy` the energies (eV); `met_f`, else `ff`, the forces (eV/Å, not gradients). `xx` and `dxx`, the AEVs and
their derivatives, are sorted by element; derivatives of PyKinML are wrong for beta below 1.
# n atoms of one structure
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pykinml_func.data.formats.blocks import BLOCK_ROWS, Found, select
from pykinml_func.data.formats.rows import Query, Row, found_labels, numbers_of, source_label
from pykinml_func.errors import DataError

if TYPE_CHECKING:
    import h5py

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_GROUP = "Base_Group"
_NEEDED = ("symbols", "xip", "xfp", "xp", "yy")


def is_hdf5(path: Path) -> bool:
    """Whether a file has HDF5's signature, at byte 0, 512, 1024, 2048 and so on, as the format allows."""
    place, end = 0, path.stat().st_size
    with path.open("rb") as file:
        while place < end:
            file.seek(place)
            if file.read(len(_SIGNATURE)) == _SIGNATURE:
                return True
            place = max(512, 2 * place)
    return False


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; what cannot be read in it, or is of another kind than expected, is a DataError."""
    import h5py

    try:
        with h5py.File(path) as file:
            yield file
    except DataError:
        raise
    except (OSError, TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {error}; write it again") from error


def pykinml_kind(file: h5py.File) -> str | None:
    """'aev' or 'pca', or None for a file that PyKinML did not write."""
    import h5py

    if not isinstance(file.get(_GROUP), h5py.Group):
        return None
    return "pca" if "PCA" in file else "aev"


def read_hdf5(path: Path, query: Query) -> Iterator[Found]:
    """The structures of one file, in blocks; their labels belong to the query's main level. Raises DataError."""
    with open_hdf5(path) as file:
        group = _group(file, path)
        yield from select(_rows(group, path, query.main), query, _note(group))


def hdf5_count(path: Path, _: Query) -> int:
    """How many structures a file says it has."""
    with open_hdf5(path) as file:
        return len(_group(file, path)["yy"])


def hdf5_contents(path: Path, query: Query) -> str:
    """What a file holds, for an error message."""
    with open_hdf5(path) as file:
        number = len(_group(file, path)["yy"])
    return f"{path.name}: {number} structures, energies taken as fidelity {query.main}, no temperatures"


def _group(file: h5py.File, path: Path) -> h5py.Group:
    import h5py

    group = file[_GROUP]
    absent = [name for name in _NEEDED if not isinstance(group.get(name), h5py.Dataset)]
    if absent:
        raise DataError(f"{path} must hold {', '.join(_NEEDED)} in {_GROUP}, got none of {', '.join(absent)}")
    return group


def _rows(group: h5py.Group, path: Path, level: int | None) -> Iterator[tuple[str, Row]]:
    counts = [len(group[name]) for name in ("symbols", "xip", "xfp", "yy")]
    number = group.attrs.get("ndat", counts[0])
    if set(counts) != {number}:
        raise DataError(
            f"{path} must hold as many of each of symbols, xip, xfp and yy as its ndat, {number}, got {counts[0]}, "
            f"{counts[1]}, {counts[2]} and {counts[3]}; write it again"
        )
    read_ff = _has_ff(group)
    for part in _parts(counts[0]):
        starts, ends, energies = (group[name][part] for name in ("xip", "xfp", "yy"))
        lowest = max(0, int(starts.min()))
        positions = group["xp"][lowest : max(lowest, int(ends.max()))]
        each = zip(_symbols(group, part), energies, _names(group, part), _forces(group, part, read_ff), strict=True)
        for k, (atoms, energy, name, forces) in enumerate(each):
            m = part.start + k + 1
            where = f"{path}, structure {m}"
            row = Row(
                f"{source_label(path)}/{m}",
                numbers_of(atoms, where),
                positions[starts[k] - lowest : ends[k] - lowest],
                name,
                np.nan,
                {} if level is None else found_labels({level: (float(energy.item()), forces)}),
            )
            yield where, row


def _parts(number: int) -> Iterator[slice]:
    """The structures, so many at a time."""
    return (slice(first, min(first + BLOCK_ROWS, number)) for first in range(0, number, BLOCK_ROWS))


def _symbols(group: h5py.Group, part: slice) -> list[list[str]]:
    """Symbols of each structure: padded with blanks, or, of old h5py, the text of a list."""
    found = group["symbols"].asstr()[part]
    if found.ndim == 1:
        return [re.findall(r"[^\W\d_]+", text) for text in found]
    return [[symbol for symbol in row if symbol] for row in found]


def _names(group: h5py.Group, part: slice) -> list[str]:
    """Names of the structures: the first column of `met_s`, the second of `meta`, an older form of it."""
    for name, column in (("met_s", 0), ("meta", 1)):
        if name in group:
            return ["" if text == "None" else text for text in group[name].asstr()[part, column]]
    return [""] * (part.stop - part.start)


def _forces(group: h5py.Group, part: slice, read_ff: bool) -> Sequence[np.ndarray | None]:
    """Forces (n,3) of each structure; read_ff: what `_has_ff` says."""
    if not read_ff and "met_f" not in group:
        return [None] * (part.stop - part.start)
    rows = group["met_f"][part] if "met_f" in group else group["ff"][part].reshape(-1)
    return [np.asarray(row).reshape(-1, 3) for row in rows]


def _has_ff(group: h5py.Group) -> bool:
    """Whether `ff` holds the forces of every structure, where `met_f`, which is what the source held, is not there.

    PyKinML writes an `ff` without forces too: of whatever was in memory, one row for all structures, so that an `ff` of
    one structure may be either.
    """
    number = len(group["xip"])
    if "met_f" in group or "ff" not in group or group["ff"].size != number or len(group["ff"]) != number:
        return False
    alike, first = True, group["ff"][:1].reshape(-1)[0]
    for part in _parts(number):
        sizes: Any = group["xfp"][part] - group["xip"][part]
        rows = [np.asarray(row) for row in group["ff"][part].reshape(-1)]
        if not all(len(row) == 3 * size for row, size in zip(rows, sizes, strict=True)):
            return False
        alike = alike and all(np.array_equal(row, first) for row in rows)
    return not alike


def _note(group: h5py.Group) -> str:
    """What is there and is not read."""
    if "xx" not in group:
        return ""
    length = group["xx"].shape[1]
    derivatives = "dxx" in group and len(group["dxx"]) > 0 and np.size(group["dxx"][0]) > length
    return f"AEVs of {length} values{' and their derivatives' if derivatives else ''} computed anew"
