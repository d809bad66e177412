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
    """Energies (eV) and largest forces (eV/Å) of each level, one structure a row, and where all of it was written."""
    levels, difference = predictions[0].fidelities, predictions[0].is_difference
    kind = " difference" if difference else ""
    names = [""] if len(levels) == 1 else [f" of level {level}" for level in levels]
    columns = [text for name in names for text in (f"energy{kind}{name}, eV", f"largest force{kind}{name}, eV/Å")]
    table = Table("structure", "formula", *columns)
    for column in table.columns[2:]:
        column.justify = "right"
    for number, (image, prediction) in enumerate(zip(images, predictions, strict=True), start=1):
        if number <= _MOST_ROWS:
            table.add_row(str(number), image.get_chemical_formula(), *_cells(prediction))
    console = Console()
    console.print(table)
    if len(images) > _MOST_ROWS:
        rest = f"{len(images) - _MOST_ROWS} more structures are not shown"
        console.print(rest if output else f"{rest}; write them all with -o OUT.extxyz", soft_wrap=True)
    if output is not None:
        console.print(f"wrote {output}", soft_wrap=True)


def _cells(prediction: Prediction) -> list[str]:
    """Energy and largest force of each level."""
    cells = []
    for column, energy in enumerate(prediction.level_energies):
        forces = prediction.level_forces
        largest = "" if forces is None else f"{np.linalg.norm(forces[column], axis=1).max():.6f}"
        cells += [f"{energy:.6f}", largest]
    return cells
