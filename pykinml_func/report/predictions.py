"""The table that `pykinml predict` shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from ase import Atoms
from rich.console import Console
from rich.table import Table

from pykinml_func.inference.predictor import Prediction
from pykinml_func.report.tables import print_whole, whole_width

_MOST_ROWS = 40


def print_predictions(images: Sequence[Atoms], predictions: Sequence[Prediction], output: Path | None) -> None:
    """Energies (eV) and largest forces (eV/Å) of each level, one structure a row, and where all of it was written.

    Of an ensemble also the standard deviations at the highest level; and how far beyond the training data a structure
    lies, where that is known.
    """
    first = predictions[0]
    levels, kind = first.fidelities, " difference" if first.is_difference else ""
    names = [""] if len(levels) == 1 else [f" of level {level}" for level in levels]
    columns = [text for name in names for text in (f"energy{kind}{name}, eV", f"largest force{kind}{name}, eV/Å")]
    is_ensemble = first.energy_std is not None
    columns += ["energy std, eV", "largest force std, eV/Å"] if is_ensemble else []
    is_known = any(not math.isnan(prediction.extrapolation) for prediction in predictions)
    rows = []
    for number, (image, prediction) in enumerate(zip(images[:_MOST_ROWS], predictions, strict=False), start=1):
        cells = [*_cells(prediction), *(_std_cells(prediction) if is_ensemble else [])]
        cells += [_extrapolation_cell(prediction)] if is_known else []
        rows.append([str(number), image.get_chemical_formula(), *cells])
    console = Console()
    headers = ["no.", "formula", *columns, *(["extra-\npolation"] if is_known else [])]
    table = _table(headers, rows)
    if whole_width(console, table) > console.width:
        table = _table(_narrowed(headers, rows), rows)
    print_whole(console, table)
    for line in _lines(predictions, is_known, output):
        console.print(line, soft_wrap=True)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table()
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place > 1 else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _narrowed(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Headers in lines as long as the cells below them, or as their longest word."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    pairs = zip(headers, widths, strict=True)
    return [header if "\n" in header else fill(header, width, break_long_words=False) for header, width in pairs]


def _lines(predictions: Sequence[Prediction], is_known: bool, output: Path | None) -> Iterator[str]:
    """What stands below the table."""
    if len(predictions) > _MOST_ROWS:
        rest = f"{len(predictions) - _MOST_ROWS} more structures are not shown"
        yield rest if output else f"{rest}; write them all with -o OUT.extxyz"
    beyond = sum(prediction.is_extrapolated for prediction in predictions)
    if is_known and beyond:
        yield f"! {beyond} of {len(predictions)} structures beyond the training data: extrapolation above 1"
    elif is_known:
        yield f"none of {len(predictions)} structures beyond the training data: no extrapolation above 1"
    if output is not None:
        yield f"wrote {output}"


def _cells(prediction: Prediction) -> list[str]:
    """Energy and largest force of each level."""
    cells = []
    for column, energy in enumerate(prediction.level_energies):
        forces = prediction.level_forces
        cells += [f"{energy:.6f}", "" if forces is None else f"{_largest(forces[column]):.6f}"]
    return cells


def _std_cells(prediction: Prediction) -> list[str]:
    energy, forces = prediction.energy_std, prediction.forces_std
    return ["" if energy is None else f"{energy:.4f}", "" if forces is None else f"{_largest(forces):.3f}"]


def _largest(vectors: np.ndarray) -> float:
    """The length of the longest. vectors: (n,3)."""
    return float(np.linalg.norm(vectors, axis=1).max())


def _extrapolation_cell(prediction: Prediction) -> str:
    return f"{'! ' if prediction.is_extrapolated else ''}{prediction.extrapolation:.2f}"
