"""What a run trains to: the energies and forces of its fidelity levels, or the difference of two.

# M structures, A atoms in all of them, L fidelity levels predicted
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pykinml_func.data.preparing.pages import release
from pykinml_func.errors import DataError
from pykinml_func.types import Structures

if TYPE_CHECKING:
    from pykinml_func.config import DataConfig

_CHUNK = 2**14
"""Structures whose forces are looked at at a time."""


class ForceColumns:
    """Forces (A,L,3) of some levels, less those of another one in delta learning: computed for the atoms asked for, so
    that forces on disk stay there.
    """

    def __init__(self, stored: np.ndarray, columns: list[int], below: int | None) -> None:
        """stored: (A,l,3) eV/Å of all levels; columns: (L,) of them; below: the one that is subtracted."""
        self._stored, self._columns, self._below = stored, columns, below

    @property
    def shape(self) -> tuple[int, int, int]:
        """(A,L,3)."""
        return len(self._stored), len(self._columns), 3

    def __len__(self) -> int:
        """A."""
        return len(self._stored)

    def __getitem__(self, index: Any) -> np.ndarray:
        """(a,L,3) of the atoms of an array or a slice; as of an array where levels and components follow."""
        rows, *rest = index if isinstance(index, tuple) else (index,)
        found = self._stored[rows]
        chosen: np.ndarray = found[:, self._columns]
        if self._below is not None:
            chosen = chosen - found[:, [self._below]]
        return chosen[:, *rest]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in memory."""
        return np.array(self[:], dtype=dtype, copy=copy)


def training_labels(data: DataConfig, structures: Structures) -> Structures:
    """The structures with the labels of `data.fidelities`; in delta learning, those of fidelity less low_fidelity.

    Forces are not copied: they are those of the structures, or `ForceColumns`, which stand in for an array where rows
    are taken.
    """
    there = structures.levels.tolist()
    columns = [there.index(level) for level in data.fidelities]
    below = None if data.baseline is None else there.index(data.baseline)
    energies = structures.energies[:, columns]
    if below is not None:
        energies = energies - structures.energies[:, [below]]
    if columns == list(range(len(there))) and below is None:
        return structures._replace(levels=np.array(data.fidelities), energies=energies)
    forces = cast("np.ndarray", ForceColumns(structures.forces, columns, below))
    return structures._replace(levels=np.array(data.fidelities), energies=energies, forces=forces)


def complete_structures(
    data: DataConfig, labels: Structures, with_forces: np.ndarray | None, members: np.ndarray
) -> np.ndarray:
    """Indices of the structures that have what a run needs; the others are left out with `skip_incomplete`.

    labels: of `training_labels`; with_forces: (M,L) of `has_forces`, None to train to energies alone; members: (k,)
    indices of the structures that the run may use. With several levels any label will do, since the others are masked.
    Raises DataError for a structure that lacks a label without `skip_incomplete`, and where none is left.
    """
    there = np.isfinite(labels.energies[members])
    if with_forces is not None:
        with_forces = with_forces[members]
        if not with_forces.any():
            raise DataError(
                f"forces must be there to train to them, and none of {len(members)} structures has any; train "
                "without forces"
            )
        if not data.multi_fidelity:
            there &= with_forces
    kept = there.any(axis=1)
    if kept.all() or (data.skip_incomplete and kept.any()):
        found: np.ndarray = members[kept]
        return found
    raise _incomplete(data, labels.ids[members], kept, with_forces is not None)


def _incomplete(data: DataConfig, ids: np.ndarray, kept: np.ndarray, forces: bool) -> DataError:
    """What is lacking, where, and the way out. kept: whether a structure has what is needed, as many as ids."""
    lacking = ids[~kept]
    needed = "energies and forces" if forces and not data.multi_fidelity else "energies"
    levels = (" or " if data.multi_fidelity else " and ").join(f"level {level}" for level in data.levels)
    ways = [] if data.skip_incomplete or not kept.any() else ["leave them out with --skip-incomplete"]
    ways += ["train without forces"] if forces and not data.multi_fidelity else []
    ways += ["train to levels that are there"] if not ways else []
    return DataError(
        f"every structure must have {needed} at {levels}, and {len(lacking)} of {len(ids)} lack some, "
        f"{lacking[0]} first; {', or '.join(ways)}"
    )


def has_forces(structures: Structures) -> np.ndarray:
    """(M,L): whether every atom of a structure has forces at a level."""
    offsets = structures.offsets
    found = np.zeros((structures.n_structures, structures.forces.shape[1]), dtype=bool)
    for start in range(0, len(found), _CHUNK):
        end = min(start + _CHUNK, len(found))
        there = np.isfinite(structures.forces[offsets[start] : offsets[end]]).all(axis=2)
        found[start:end] = np.logical_and.reduceat(there, offsets[start:end] - offsets[start], axis=0)
        release(structures.forces)
    return found
