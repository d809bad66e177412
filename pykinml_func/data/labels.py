"""What a run trains to: the energies and forces of its fidelity levels, or the difference of two.

# M structures, A atoms in all of them, L fidelity levels predicted
"""

from __future__ import annotations

import numpy as np

from pykinml_func.config import DataConfig
from pykinml_func.errors import DataError
from pykinml_func.types import Structures


def training_labels(data: DataConfig, structures: Structures) -> Structures:
    """The structures with the labels of `data.fidelities`; in delta learning, those of fidelity less low_fidelity."""
    columns = [structures.levels.tolist().index(level) for level in data.fidelities]
    energies, forces = structures.energies[:, columns], structures.forces[:, columns]
    if data.baseline is not None:
        below = structures.levels.tolist().index(data.baseline)
        energies = energies - structures.energies[:, [below]]
        forces = forces - structures.forces[:, [below]]
    return structures._replace(levels=np.array(data.fidelities), energies=energies, forces=forces)


def complete_structures(data: DataConfig, labels: Structures, forces: bool, members: np.ndarray) -> np.ndarray:
    """Indices of the structures that have what a run needs; the others are left out with `skip_incomplete`.

    labels: of `training_labels`; members: (k,) indices of the structures that the run may use. With several levels any
    label will do, since the others are masked. Raises DataError for a structure that lacks a label without
    `skip_incomplete`, and where none is left.
    """
    there = np.isfinite(labels.energies[members])
    if forces:
        with_forces = has_forces(labels)[members]
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
    raise _incomplete(data, labels.ids[members], kept, forces)


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
    there = np.isfinite(structures.forces).all(axis=2)
    found: np.ndarray = np.logical_and.reduceat(there, structures.offsets[:-1], axis=0)
    return found
