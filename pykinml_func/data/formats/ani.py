"""ANI's HDF5: groups of conformers of one molecule, in Hartree.

A group holds `species` (symbols or atomic numbers; also as `atomic_numbers` or `symbols`), `coordinates` (M,n,3) Å,
`energies` (M,), and `forces` (M,n,3) where there are any; those of further fidelity levels are `energies_0` and so on.
# M structures of a group, n atoms of one
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import Hartree

from pykinml_func.data.formats.blocks import BLOCK_ROWS, Found, select
from pykinml_func.data.formats.hdf5 import open_hdf5
from pykinml_func.data.formats.rows import Query, Row, checked_numbers, found_labels, numbers_of, some, source_label
from pykinml_func.errors import DataError

if TYPE_CHECKING:
    import h5py

_SPECIES = ("species", "atomic_numbers", "symbols")
_ENERGIES = ("energies", "energy")
_FORCES = ("forces", "force")


def is_ani(file: h5py.File) -> bool:
    """Whether some group holds a molecule's conformers."""
    return bool(_groups(file))


def read_ani(path: Path, query: Query) -> Iterator[Found]:
    """The structures of one file, in blocks, in eV and eV/Å; ids count through all of its groups. Raises DataError."""
    with open_hdf5(path) as file:
        yield from select(_rows(_groups(file), path, query), query)


def ani_count(path: Path, _: Query) -> int:
    """How many structures a file has."""
    with open_hdf5(path) as file:
        return sum(len(group["coordinates"]) for group in _groups(file) if group["coordinates"].ndim)


def ani_contents(path: Path, query: Query) -> str:
    """What a file holds, for an error message."""
    with open_hdf5(path) as file:
        groups = _groups(file)
        keys = sorted({key for group in groups for key in group})
    expected = [f"energies_{level}" for level in query.levels or ()] + ["energies"]
    return (
        f"{path.name}: {len(groups)} molecules with {some(keys, 20)}; their energies are looked for in "
        f"{' or '.join(expected)}"
    )


def _groups(file: h5py.File) -> list[h5py.Group]:
    import h5py

    found: list[h5py.Group] = []

    def visit(_: str, node: Any) -> None:
        if isinstance(node, h5py.Group) and "coordinates" in node and any(name in node for name in _SPECIES):
            found.append(node)

    visit("/", file)
    file.visititems(visit)
    return found


def _rows(groups: list[h5py.Group], path: Path, query: Query) -> Iterator[tuple[str, Row]]:
    before = 0
    sources = {level: _sources(groups, level, query.main) for level in query.levels or ()} if query.labels else {}
    for group in groups:
        number, name = _length(group, path), group.name.strip("/")
        species = _numbers(group, f"{path}, {group.name}")
        if species.ndim > 1 and len(species) != number:
            raise DataError(f"{path}, {group.name}: species must be one list, or one a structure, got {len(species)}")
        species = np.broadcast_to(species, (number, species.shape[-1]))
        for start in range(0, number, BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, number))
            coordinates = np.asarray(group["coordinates"][part])
            labels = {
                level: (_values(group, energies, part, path), _values(group, forces, part, path))
                for level, (energies, forces) in sources.items()
            }
            for k in range(part.stop - start):
                found = found_labels({level: (energies[k], forces[k]) for level, (energies, forces) in labels.items()})
                m = start + k
                row = Row(f"{source_label(path)}/{before + m + 1}", species[m], coordinates[k], name, np.nan, found)
                yield f"{path}, {name} structure {m + 1}", row
        before += number


def _length(group: h5py.Group, path: Path) -> int:
    """M."""
    shape: tuple[int, ...] = group["coordinates"].shape
    if len(shape) != 3:
        raise DataError(f"{path}, {group.name}: coordinates must be of shape (structures, atoms, 3), got {shape}")
    return shape[0]


def _sources(groups: list[h5py.Group], level: int, main: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The datasets of a level's energies and forces; those without a level are the main one's where none names it."""
    named = (f"energies_{level}", f"energy_{level}"), (f"forces_{level}", f"force_{level}")
    plain = level == main and not any(key in group for group in groups for key in named[0])
    return (_ENERGIES, _FORCES) if plain else named


def _values(group: h5py.Group, keys: tuple[str, ...], part: slice, path: Path) -> Any:
    """A part of the dataset of the first key that there is, in eV and Å; as many times None where there is none."""
    key = next((key for key in keys if key in group), None)
    if key is None:
        return [None] * (part.stop - part.start)
    dataset, number = group[key], len(group["coordinates"])
    if dataset.dtype.kind not in "fiu" or (dataset.shape or (1,))[0] != number:
        raise DataError(
            f"{path}, {group.name}: {key} must be {number} numbers or arrays, as coordinates are, got {dataset.dtype} "
            f"of shape {dataset.shape}"
        )
    values = np.asarray(dataset[part] if dataset.shape else [dataset[()]])
    if key.startswith("energ"):
        values = values.reshape(len(values), -1)
        if values.shape[1] != 1:
            raise DataError(f"{path}, {group.name}: {key} must be one number a structure, got {values.shape[1]}")
        values = values[:, 0]
    return values.astype(np.float64) * Hartree


def _numbers(group: h5py.Group, where: str) -> np.ndarray:
    """Atomic numbers (n,), or (M,n) where the file has them a structure."""
    dataset = group[next(name for name in _SPECIES if name in group)]
    values = np.atleast_1d(dataset[()])
    if values.dtype.kind in "iu":
        return checked_numbers(values.astype(int), where)
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in values.reshape(-1)]
    return numbers_of(texts, where).reshape(values.shape)
