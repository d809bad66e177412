"""The table that `pykinml predict` shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from rich.console import Console
from rich.table import Table

from pykinml_func.inference.predictor import Prediction

_MOST_ROWS = 40


def print_predictions(images: Sequence[Atoms], predictions: Sequence[Prediction], output: Path | None) -> None:
    """Energies (eV) and largest forces (eV/Å), one structure a row, and where all of it was written."""
    table = Table("structure", "formula", "energy, eV", "largest force, eV/Å")
    for column in table.columns[2:]:
        column.justify = "right"
    for number, (image, prediction) in enumerate(zip(images, predictions, strict=True), start=1):
        if number <= _MOST_ROWS:
            forces = prediction.forces
            largest = "" if forces is None else f"{np.linalg.norm(forces, axis=1).max():.6f}"
            table.add_row(str(number), image.get_chemical_formula(), f"{prediction.energy:.6f}", largest)
    console = Console()
    console.print(table)
    if len(images) > _MOST_ROWS:
        rest = f"{len(images) - _MOST_ROWS} more structures are not shown"
        console.print(rest if output else f"{rest}; write them all with -o OUT.extxyz", soft_wrap=True)
    if output is not None:
        console.print(f"wrote {output}", soft_wrap=True)
