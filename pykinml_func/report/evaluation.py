"""What `pykinml evaluate` prints: tables, or one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pykinml_func.inference.evaluation import Beyond, CalibrationTable, Errors, Evaluation
from pykinml_func.report.tables import print_whole

_GAUSSIAN = 0.683, 0.954
"""Shares of a Gaussian within one and two standard deviations."""

_UNITS = {"energy": "kcal/mol", "force": "kcal/mol/Å"}


def evaluation_json(found: Evaluation, model: Path, data: Sequence[Path]) -> str:
    """One JSON object; null where a number is not known."""
    named = {"model": str(model), "data": [str(path) for path in data], "units": _UNITS}
    return json.dumps(named | _plain(found), indent=2, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """NamedTuples as objects, tuples as lists, and null for what is no number."""
    if hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_evaluation(found: Evaluation, model: Path, data: Sequence[Path]) -> None:
    """Errors by level; of an ensemble, its standard deviations beside them; and those beyond the training data."""
    console = Console()

    def say(line: str = "") -> None:
        console.print(line, soft_wrap=True, highlight=False)

    members = "" if found.n_members == 1 else f", the mean of {found.n_members} members"
    files = str(data[0]) if len(data) == 1 else f"{len(data)} files"
    say(f"{model}{members}, on {found.n_structures} structures of {files}")
    if found.baseline is not None:
        say(f"errors are of the difference to level {found.baseline}")
    say()
    rows = [(str(each.level), each.energy, each.force) for each in found.levels]
    print_whole(console, _errors_table("level", rows))
    for kind, table in (("energy", found.energy_calibration), ("force", found.force_calibration)):
        if table is not None:
            say()
            for line in _calibration_facts(kind, table, found.n_members):
                say(line)
            print_whole(console, _calibration_table(kind, table))
    if found.beyond is not None:
        say()
        say(f"beyond the training data (extrapolation above 1): {found.beyond.number} of {found.n_structures}")
        print_whole(console, _errors_table("which", _beyond_rows(found.beyond)))


def _errors_table(heading: str, rows: Sequence[tuple[str, Errors, Errors | None]]) -> Table:
    """MAE, RMSE and largest error of energies and, where a row has them, of force components."""
    table = _table()
    table.add_column(f"\n{heading}")
    kinds = list(_UNITS.items())[: 2 if any(force is not None for *_, force in rows) else 1]
    for kind, unit in kinds:
        labels = "energies" if kind == "energy" else "forces"
        for above, below in (("", labels), (kind, "MAE"), (unit, "RMSE"), ("", "max")):
            table.add_column(f"{above}\n{below}", justify="right", min_width=8)
    for name, energy, force in rows:
        cells = [cell for errors in (energy, force)[: len(kinds)] for cell in _error_cells(errors)]
        table.add_row(name, *cells)
    return table


def _error_cells(errors: Errors | None) -> list[str]:
    if errors is None:
        return ["0", "", "", ""]
    return [str(errors.n_structures), *(f"{value:.3f}" if errors.n_structures else "" for value in errors[1:])]


def _beyond_rows(beyond: Beyond) -> list[tuple[str, Errors, Errors | None]]:
    return [("beyond", beyond.energy, beyond.force), ("others", beyond.energy_others, beyond.force_others)]


def _calibration_facts(kind: str, table: CalibrationTable, n_members: int) -> Iterator[str]:
    what = "energies" if kind == "energy" else "force components"
    how = "calibrated" if table.calibrated else "not calibrated"
    yield f"standard deviations of {table.number} {what}, {how}:"
    yield f"errors are {table.scale:.2f} times as large as they say"
    for k, name in enumerate(("one", "two")):
        yield (
            f"within {name}: {table.within[k]:.1%} (Gaussian {_GAUSSIAN[k]:.1%}; from {n_members} members "
            f"{table.expected[k]:.1%})"
        )


def _calibration_table(kind: str, table: CalibrationTable) -> Table:
    """Bins of equal numbers: where standard deviations are right, both columns agree."""
    shown = _table()
    for heading in ("number", f"predicted std, {_UNITS[kind]}", f"RMS error, {_UNITS[kind]}"):
        shown.add_column(heading, justify="right")
    for each in table.bins:
        shown.add_row(str(each.number), f"{each.std:.3f}", f"{each.rmse:.3f}")
    return shown


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
