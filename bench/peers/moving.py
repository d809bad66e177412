"""What every tool's ASE calculator is asked: energy and forces of a structure that has moved a little each time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from ase import Atoms

_MOVES = 1000


def moving(calculator: Any, numbers: np.ndarray, positions: np.ndarray) -> Callable[[], None]:
    """One such call, to be made again and again; numbers: (n,), positions: (n,3) Å of the first."""
    atoms = Atoms(numbers=numbers, positions=positions)
    moves = cycle(np.random.default_rng(0).normal(scale=1e-3, size=(_MOVES, *positions.shape)))

    def call() -> None:
        atoms.positions += next(moves)
        calculator.calculate(atoms, ["energy", "forces"], ["positions"])

    return call
