"""Do structures that `pykinml select` picks teach a model more than as many drawn at random?

    python -m bench.selection [--json bench/results/selection.json]

On the bundled databases' structures at wB97X/6-31G(d): 120 test, the same for every seed; an ensemble learns from 100
of the others, drawn by the seed; then 100 of the rest join them, chosen in three ways:

- selected by `pykinml select`, from the spread of that ensemble and by diversity;
- unsure: those of the largest spread alone;
- random.

A new ensemble learns from each 200 by `--recipe fast`, in as many steps as the first; a fifth of what it is given
validates. The networks of the last epoch are taken, not those of the one with the least validation error: with one
outlier among so few that validate that is an early epoch, which would say nothing of what was chosen. Errors are those
of the mean of the members on the test set: of energies, of force components, and the largest of each structure's force
components.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.table import Table

from bench.checks import JsonFile
from bench.fidelities import pool_size, read, write
from bench.machine import write_report
from bench.peers.problem import images
from pykinml_func.config.build import build_config
from pykinml_func.errors import PyKinMLError
from pykinml_func.inference.predictor import Predictor
from pykinml_func.inference.selection import force_variances, select
from pykinml_func.training.checkpoint import newest_checkpoint
from pykinml_func.training.fit import fit
from pykinml_func.training.model_file import load_ensemble
from pykinml_func.training.reporter import SilentReporter
from pykinml_func.types import Ensemble, Structures
from pykinml_func.units import KCAL_PER_MOL

_LEVEL = 1
_TEST, _VALID_SHARE, _BATCH = 120, 0.2, 20
START, SELECTED, UNSURE, RANDOM = "start", "selected", "unsure", "random"
MEASURES = {
    "energy_mae": "energy MAE",
    "energy_rmse": "RMSE",
    "energy_p95": "95%",
    "energy_max": "largest",
    "force_mae": "force MAE",
    "force_rmse": "RMSE",
    "force_p95": "95% of structures",
    "force_max": "largest",
}
"""Errors, kcal/mol and kcal/mol/Å, and what heads their columns."""


def run(seed: int, data: Path, labels: int, members: int, steps: int) -> list[dict[str, Any]]:
    """The test errors of one seed, a row a way: before, and after each choice."""
    torch.set_num_threads(1)
    structures = read(data)
    test, start, pool = divide(structures, labels, seed)
    learn = partial(train, structures, seed=seed, members=members, steps=steps)
    ensemble = learn(start)
    rows = [{"way": START, "seed": seed, **errors(ensemble, structures, test)}]
    for way, chosen in choices(ensemble, images(structures.take(pool)), labels, seed).items():
        found = errors(learn(np.concatenate([start, pool[chosen]])), structures, test)
        rows.append({"way": way, "seed": seed, **found})
    return rows


def divide(structures: Structures, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Structures that test (the same for every seed), that are labelled first, and that may be labelled next."""
    labelled = np.flatnonzero(np.isfinite(structures.energies).all(axis=1))
    drawn = np.random.default_rng(0).permutation(labelled)
    shuffled = np.random.default_rng([seed, labels]).permutation(drawn[_TEST:])
    return drawn[:_TEST], shuffled[:labels], shuffled[labels:]


def choices(ensemble: Ensemble, pool: Sequence[Atoms], number: int, seed: int) -> dict[str, np.ndarray]:
    """What each way chooses, as places in the pool."""
    return {
        SELECTED: select(ensemble, pool, number),
        UNSURE: force_variances(ensemble, pool).argsort(descending=True)[:number].numpy(),
        RANDOM: np.random.default_rng([seed, number, 1]).permutation(len(pool))[:number],
    }


def train(structures: Structures, learn: np.ndarray, seed: int, members: int, steps: int) -> Ensemble:
    """The ensemble that learns from the structures at `learn`, as it is after the last epoch."""
    n_valid = round(_VALID_SHARE * len(learn))
    epochs = steps // -(-(len(learn) - n_valid) // _BATCH)
    nothing = learn[:0]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write(folder, structures, learn, test=nothing, hidden=nothing)
        settings = {
            "input": [str(folder / "*.db")],
            "split_files": [str(folder / "split.txt")],
            "split": [len(learn) - n_valid, n_valid, 0],
            "fidelity": _LEVEL,
            "recipe": "fast",
            "prepared": folder / "prepared",
            "output": folder / "run",
            "epochs": epochs,
            "save_every": epochs,
            "batch_size": _BATCH,
            "seeds": [seed, members * seed],
            "ensemble": members,
            "compile": "off",
            "threads": 1,
        }
        fit(build_config(settings), SilentReporter())
        return load_ensemble(newest_checkpoint(folder / "run"))


def errors(ensemble: Ensemble, structures: Structures, test: np.ndarray) -> dict[str, float]:
    """`MEASURES` of the mean of the members."""
    labels = structures.take(test)
    column = int(np.flatnonzero(labels.levels == _LEVEL)[0])
    found = Predictor(ensemble).predict(images(labels))
    energies = np.array([prediction.energy for prediction in found]) - labels.energies[:, column]
    forces = np.concatenate(
        [prediction.level_forces[-1] for prediction in found if prediction.level_forces is not None]
    )
    off = (forces - labels.forces[:, column]) * KCAL_PER_MOL
    worst = np.maximum.reduceat(np.abs(off).max(axis=1), labels.offsets[:-1])
    return {**_of("energy", energies * KCAL_PER_MOL, np.abs(energies) * KCAL_PER_MOL), **_of("force", off, worst)}


def _of(kind: str, off: np.ndarray, of_structures: np.ndarray) -> dict[str, float]:
    """off: errors; of_structures: (M,) the largest of each structure."""
    return {
        f"{kind}_mae": float(np.abs(off).mean()),
        f"{kind}_rmse": float(np.sqrt(np.square(off).mean())),
        f"{kind}_p95": float(np.quantile(of_structures, 0.95)),
        f"{kind}_max": float(of_structures.max()),
    }


def main(
    data: Annotated[Path, typer.Option(help="directory of the databases")] = Path("examples/data"),
    labels: Annotated[int, typer.Option(help="structures to start from, and to choose", min=10)] = 100,
    members: Annotated[int, typer.Option(help="members of each ensemble", min=2)] = 4,
    seeds: Annotated[int, typer.Option(help="seeds", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="training steps of each run", min=100)] = 600,
    jobs: Annotated[int, typer.Option(help="seeds at a time, of one thread each", min=1)] = 2,
    json_file: JsonFile = None,
) -> None:
    """Choose in every way, train on each choice and print the test errors."""
    try:
        pool = pool_size(read(data))
    except PyKinMLError as error:
        raise typer.BadParameter(f"--data: {error}") from None
    if 2 * labels > pool:
        raise typer.BadParameter(f"--labels must be at most {pool // 2}, half of what does not test, got {labels}")
    rows = []
    work = partial(run, data=data, labels=labels, members=members, steps=steps)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        for found in executor.map(work, range(seeds)):
            for row in found:
                told = f"{row['energy_mae']:.2f} kcal/mol, {row['force_mae']:.2f} kcal/mol/Å"
                print(f"{row['way']}, seed {row['seed']}: {told}", flush=True)
            rows += found
    Console(width=130).print(table(rows))
    command = f"python -m bench.selection --labels {labels} --members {members} --seeds {seeds} --steps {steps}"
    write_report(json_file, command, {"threads": 1, "jobs": jobs, "rows": rows, "mean": means(rows)})


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each way, over the seeds."""
    ways = dict.fromkeys(row["way"] for row in rows)
    return {
        way: {name: statistics.mean(row[name] for row in rows if row["way"] == way) for name in MEASURES}
        for way in ways
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Means over the seeds, and for selected ones how many seeds were better than random."""
    shown = Table("", *MEASURES.values(), title="kcal/mol and kcal/mol/Å, means over seeds; (seeds better than random)")
    seeds = sorted({row["seed"] for row in rows})
    of = {(row["way"], row["seed"]): row for row in rows}
    for way, found in means(rows).items():
        better = {name: sum(of[way, s][name] < of[RANDOM, s][name] for s in seeds) for name in MEASURES}
        shown.add_row(way, *(f"{found[name]:.2f} ({better[name]})" for name in MEASURES))
    return shown


if __name__ == "__main__":
    typer.run(main)
