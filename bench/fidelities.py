"""What are delta learning and several fidelity levels for? The high level's error against the number of its labels.

    python -m bench.fidelities [--json bench/results/fidelities.json] [--figure bench/results/fidelities.png]

On the bundled databases (level 0: GFN1-xTB, level 1: wB97X/6-31G(d)), energies alone, three seeds each. One set of 120
structures is kept for testing. Of the others with both levels, `labels` keep their high level (a fifth of them
validate), drawn by the seed; then

- single trains on those alone, to level 1;
- delta trains on those alone, to level 1 less level 0; its prediction needs the low level's energy at run time;
- multi trains on those and on level 0 of every other structure but the test set's.

Every run makes as many steps, to whole epochs, whatever its number of structures. Errors are MAE of level 1 on the
test set.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.checks import JsonFile, check_file
from bench.machine import write_report
from pykinml_func.config import RunConfig
from pykinml_func.config.build import build_config
from pykinml_func.data.formats.database import read_databases, write_database
from pykinml_func.data.formats.sources import find_inputs
from pykinml_func.errors import PyKinMLError
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import SilentReporter
from pykinml_func.types import Structures

Mode = Literal["single", "delta", "multi"]
MODES: dict[Mode, dict[str, Any]] = {
    "single": {},
    "delta": {"delta": True, "low_fidelity": 0},
    "multi": {"multi_fidelity": True, "low_fidelity": 0},
}
_METHODS = {0: "GFN1-xTB", 1: "wB97X/6-31G(d)"}
_TEST, _VALID_SHARE, _BATCH = 120, 0.2, 20
_FEWEST = 3
"""labels that training and validation can be drawn from"""


class Job(NamedTuple):
    """One run: how many high-level labels, what mode, which seed."""

    labels: int
    mode: Mode
    seed: int


def read(data: Path) -> Structures:
    """The databases in a folder, at both levels."""
    return read_databases(find_inputs([str(data / "*.db")]), list(_METHODS))


def run(job: Job, data: Path, steps: int, compilation: Literal["on", "off"] = "on") -> dict[str, Any]:
    """Train one run and return its test errors in kcal/mol."""
    structures = read(data)
    test, labelled, low = divide(structures, job.labels, job.seed)
    learn = np.concatenate([labelled, low]) if job.mode == "multi" else labelled
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write(folder, structures, learn, test, hidden=low)
        torch.set_num_threads(1)
        errors = fit(_config(job, folder, len(learn), steps, compilation), SilentReporter()).errors["test"]
    return {**job._asdict(), "mae": errors["energy_mae"], "rmse": errors["energy_rmse"]}


def pool_size(structures: Structures) -> int:
    """Structures with both levels that do not test: the most labels that there can be."""
    return max(0, len(_with_both(structures)) - _TEST)


def _with_both(structures: Structures) -> np.ndarray:
    return np.flatnonzero(np.isfinite(structures.energies).all(axis=1))


def divide(structures: Structures, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Structures that test (the same for every seed), that keep their high level, and that have the low one alone."""
    drawn = np.random.default_rng(0).permutation(_with_both(structures))
    test, pool = drawn[:_TEST], drawn[_TEST:]
    labelled = np.random.default_rng([seed, labels]).permutation(pool)[: labels or None]
    rest = np.setdiff1d(np.arange(structures.n_structures), np.concatenate([test, labelled]))
    return test, labelled, rest


def write(folder: Path, structures: Structures, learn: np.ndarray, test: np.ndarray, hidden: np.ndarray) -> None:
    """The databases and split file of one run, without the high level of the structures at `hidden`."""
    energies = structures.energies.copy()
    energies[hidden, 1] = np.nan
    masked, lines = structures._replace(energies=energies), []
    for formula, members in _by_database(structures, np.sort(np.concatenate([learn, test]))):
        write_database(folder / f"{formula}.db", masked.take(members), _METHODS)
        lines += [f"{formula}/{row} {-1 if m in test else 2}" for row, m in enumerate(members, start=1)]
    (folder / "split.txt").write_text("\n".join(lines) + "\n")


def _by_database(structures: Structures, members: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    names = np.array([str(structures.ids[m]).partition("/")[0] for m in members])
    for name in np.unique(names):
        yield str(name), members[names == name]


def _config(job: Job, folder: Path, n_learn: int, steps: int, compilation: str) -> RunConfig:
    n_valid = round(_VALID_SHARE * n_learn)
    epochs = steps // -(-(n_learn - n_valid) // _BATCH)
    return build_config(
        {
            "input": [str(folder / "*.db")],
            "split_files": [str(folder / "split.txt")],
            "split": [n_learn - n_valid, n_valid, 0],
            "prepared": folder / "prepared",
            "output": folder / "run",
            "epochs": epochs,
            "save_every": epochs,
            "batch_size": _BATCH,
            "learning_rate": 3e-3,
            "schedule": "exponential",
            "decay": 0.01 ** (1 / epochs),  # to a hundredth at the end, in every run
            "seeds": [job.seed, job.seed],
            "compile": compilation,
            "threads": 1,
            **MODES[job.mode],
        }
    )


def main(
    data: Annotated[Path, typer.Option(help="directory of the databases")] = Path("examples/data"),
    labels: Annotated[str, typer.Option(help="numbers of high-level labels; 0: all")] = "25,50,100,200,0",
    seeds: Annotated[int, typer.Option(help="seeds of each", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="training steps of each run")] = 10_000,
    jobs: Annotated[int, typer.Option(help="runs at a time, of one thread each", min=1)] = 2,
    json_file: JsonFile = None,
    figure: Annotated[Path | None, typer.Option(help="draw them here (.png)", callback=check_file)] = None,
) -> None:
    """Train every mode on every number of labels and print the test errors."""
    try:
        structures = read(data)
    except PyKinMLError as error:
        raise typer.BadParameter(f"--data: {error}") from None
    pool = pool_size(structures)
    counts = _counts(labels, pool)
    fewest = -(-structures.n_structures // _BATCH)
    if steps < fewest:
        raise typer.BadParameter(f"--steps must be at least {fewest}, an epoch of the largest run, got {steps}")
    work = [Job(count, mode, seed) for count in counts for mode in MODES for seed in range(seeds)]
    rows = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        for row in executor.map(partial(run, data=data, steps=steps), work):
            print(
                f"{row['labels'] or 'all'} labels, {row['mode']}, seed {row['seed']}: {row['mae']:.2f} kcal/mol",
                flush=True,
            )
            rows.append(row)
    print_table(rows, counts, pool)
    command = f"python -m bench.fidelities --labels {labels} --seeds {seeds} --steps {steps}"
    write_report(json_file, command, {"threads": 1, "jobs": jobs, "rows": rows})
    if figure is not None:
        draw(figure, rows, counts, pool)


def _counts(labels: str, pool: int) -> list[int]:
    """The numbers of labels in a text. Raises BadParameter where the databases have fewer."""
    try:
        counts = [int(text) for text in labels.split(",")]
    except ValueError:
        counts = [-1]
    if not all(_FEWEST <= (count or pool) <= pool for count in counts):
        raise typer.BadParameter(
            f"--labels must be numbers from {_FEWEST} to {pool}, the structures with both levels beside the {_TEST} "
            f"that test, or 0 for all of them; got {labels}"
        )
    return counts


def _errors(rows: list[dict[str, Any]], labels: int, mode: str) -> list[float]:
    return [row["mae"] for row in rows if (row["labels"], row["mode"]) == (labels, mode)]


def print_table(rows: list[dict[str, Any]], counts: list[int], pool: int) -> None:
    """Mean and range of the test error, a row a number of labels. pool: how many all are."""
    table = Table("high-level labels", *(f"{mode}, test MAE kcal/mol" for mode in MODES))
    for count in counts:
        cells = []
        for mode in MODES:
            found = _errors(rows, count, mode)
            cells.append(f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        table.add_row(str(count or f"all ({pool})"), *cells)
    Console(width=110).print(table)


def draw(path: Path, rows: list[dict[str, Any]], counts: list[int], pool: int) -> None:
    """Mean and range of the test error against the number of labels, a line a mode. pool: how many all are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    places = [count or pool for count in counts]
    for mode in MODES:
        found = [_errors(rows, count, mode) for count in counts]
        means = [statistics.mean(errors) for errors in found]
        spans = [
            [m - min(e) for m, e in zip(means, found, strict=True)],
            [max(e) - m for m, e in zip(means, found, strict=True)],
        ]
        axes.errorbar(places, means, yerr=spans, marker="o", capsize=3, label=mode)
    axes.set(xscale="log", yscale="log", xlabel="high-level labels (validation included)")
    axes.set_ylabel("test MAE of the high level, kcal/mol")
    axes.set_xticks(places, [str(place) for place in places], minor=False)
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    typer.run(main)
