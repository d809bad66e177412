from __future__ import annotations

import numpy as np
from ase import Atoms

from bench.peers.moving import _MOVES, moving
from bench.peers.protocol import median_of_calls


class Calculator:
    """Remembers the positions that it is asked for."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def calculate(self, atoms: Atoms, properties: list[str], changes: list[str]) -> None:
        assert (properties, changes) == (["energy", "forces"], ["positions"])
        assert atoms.numbers.tolist() == [6, 1]
        self.seen.append(atoms.positions.copy())


def test_every_call_is_of_a_structure_that_has_moved_a_little():
    calculator, positions = Calculator(), np.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]])
    call = moving(calculator, np.array([6, 1]), positions)
    for _ in range(_MOVES + 2):
        call()
    steps = np.diff([positions, *calculator.seen], axis=0)
    assert (np.abs(steps) > 0).all() and np.abs(steps).max() < 1e-2
    assert positions.tolist() == [[0, 0, 0], [1.1, 0, 0]], "the next tool begins where this one did"


def test_a_quarter_of_the_calls_warm_up():
    calls: list[int] = []
    assert median_of_calls(lambda: calls.append(0), 8) > 0
    assert len(calls) == 2 + 8
