"""What does a random split hide? Test errors where whole groups of structures are kept out of training.

    python -m bench.grouped [--pykinml DIR] [--json bench/results/grouped.json]

On the bundled databases (wB97X/6-31G(d), energies and forces), with `--recipe fast`:

- splits of 0.8, 0.1, 0.1, three seeds each: random, by name, by name with a transition state and the path through it as
  one, by formula;
- each name held out in turn, the other structures trained and validated on, beside the errors of the same name's
  structures in the random splits.

DIR holds PyKinML's example data: in its C5H5.db every structure has the same name, but those of near numbers are alike,
so that blocks of a hundred numbers are the groups. Errors are MAE of energies, and of force components.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.checks import JsonFile, check_data
from bench.machine import write_report
from pykinml_func.config.build import build_config
from pykinml_func.data.formats.database import read_databases
from pykinml_func.data.formats.sources import find_inputs
from pykinml_func.data.groups import structure_groups
from pykinml_func.errors import PyKinMLError
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import RunResult, Setup, SilentReporter
from pykinml_func.types import Structures
from pykinml_func.units import KCAL_PER_MOL

BUNDLED, PYKINML = "bundled", "C5H5"
FILES = {BUNDLED: "*.db", PYKINML: "C5H5.db"}
RANDOM = "random"
WAYS = {BUNDLED: (RANDOM, "name", "name:^(?:ts|irc)_(.*)|(.*)", "formula"), PYKINML: (RANDOM, "id:100")}
"""How each is split: `split_by`, or at random."""
GROUPS = {BUNDLED: "name", PYKINML: "id:100"}
"""What errors are told of."""
_VALID = 60
"""structures that validate where a name is held out, as many as of a random split"""


class Job(NamedTuple):
    """One run: its data, how they are split, which name is kept out, if that is how, and its seed."""

    data: str
    way: str
    seed: int
    held_out: str = ""


class _Heard(SilentReporter):
    """Remembers how a run stood before its first epoch."""

    def ready(self, setup: Setup) -> None:
        self.setup = setup


def read(pattern: str) -> Structures:
    """The databases that a pattern names, at level 1."""
    return read_databases(find_inputs([pattern]), [1])


def run(job: Job, folders: dict[str, Path], **settings: Any) -> dict[str, Any]:
    """Train one run and return its test errors, kcal/mol and kcal/mol/Å, of all and of each group.

    settings: other than `--recipe fast`.
    """
    pattern, heard = str(folders[job.data] / FILES[job.data]), _Heard()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        division = _held_out(job, pattern, folder) if job.held_out else _split_by(job)
        common = {"recipe": "fast", "input": [pattern], "seeds": [job.seed, job.seed], "threads": 1}
        where = {"prepared": folder / "prepared", "output": folder / "run"}
        torch.set_num_threads(1)
        result = fit(build_config({**common, **where, **division, **settings}), heard)
    split = heard.setup.data.split
    return {
        **job._asdict(),
        "structures": [len(part) for part in split],
        "energy_mae": result.errors["test"]["energy_mae"],
        "force_mae": result.errors["test"]["force_mae"],
        "groups": errors_of_groups(GROUPS[job.data], heard.setup, result),
    }


def _split_by(job: Job) -> dict[str, Any]:
    return {"split": (0.8, 0.1, 0.1)} | ({} if job.way == RANDOM else {"split_by": job.way})


def _held_out(job: Job, pattern: str, folder: Path) -> dict[str, Any]:
    """Settings that test on one name, and train on as many others whatever the name; writes the split file."""
    structures = read(pattern)
    lines = [
        f"{m} {-1 if name == job.held_out else 2}\n" for m, name in zip(structures.ids, structures.names, strict=True)
    ]
    (folder / "split.txt").write_text("".join(lines))
    largest = int(np.unique(structures.names, return_counts=True)[1].max())
    n_train = structures.n_structures - largest - _VALID
    return {"split_files": [str(folder / "split.txt")], "split": (n_train, _VALID, 0)}


def errors_of_groups(split_by: str, setup: Setup, result: RunResult) -> dict[str, list[float]]:
    """Test structures of each group, MAE of their energies and of their force components."""
    labels, test = setup.data.labels, setup.data.split.test
    found = result.predictions["test"]
    if found.forces is None:
        raise ValueError("errors of groups are those of runs with forces")
    energies = np.abs(found.energies[1] - found.energies[0])[:, -1] * KCAL_PER_MOL
    forces = np.abs(found.forces[1] - found.forces[0])[:, -1] * KCAL_PER_MOL
    groups = structure_groups(split_by, labels, test)
    of_atoms = np.repeat(groups, labels.sizes[test])
    return {
        str(group): [
            int((groups == group).sum()),
            float(energies[groups == group].mean()),
            float(forces[of_atoms == group].mean()),
        ]
        for group in np.unique(groups)
    }


def jobs_of(folders: dict[str, Path], seeds: int) -> list[Job]:
    """Every run: ways to split, then names held out."""
    work = [Job(data, way, seed) for data in folders for way in WAYS[data] for seed in range(seeds)]
    names = np.unique(read(str(folders[BUNDLED] / FILES[BUNDLED])).names).tolist()
    return work + [Job(BUNDLED, "held out", 0, name) for name in names]


def _pykinml(folder: Path | None) -> Path | None:
    return None if folder is None else check_data(folder)


def main(
    data: Annotated[Path, typer.Option(help="directory of the bundled databases")] = Path("examples/data"),
    pykinml: Annotated[
        Path | None, typer.Option(help="directory of PyKinML's example data; default: without", callback=_pykinml)
    ] = None,
    seeds: Annotated[int, typer.Option(help="seeds of each split", min=1)] = 3,
    jobs: Annotated[int, typer.Option(help="runs at a time, of one thread each", min=1)] = 2,
    json_file: JsonFile = None,
) -> None:
    """Train with every split and with every name held out, and print the test errors."""
    folders = {BUNDLED: data} | ({} if pykinml is None else {PYKINML: pykinml})
    try:
        work = jobs_of(folders, seeds)
    except PyKinMLError as error:
        raise typer.BadParameter(f"--data: {error}") from None
    rows = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        for row in executor.map(partial(run, folders=folders), work):
            told = f"{row['energy_mae']:.2f} kcal/mol, {row['force_mae']:.2f} kcal/mol/Å"
            print(f"{row['data']}, {row['held_out'] or row['way']}, seed {row['seed']}: {told}", flush=True)
            rows.append(row)
    console = Console(width=130)
    console.print(table_of_ways(rows))
    console.print(table_of_names(rows))
    command = f"python -m bench.grouped{'' if pykinml is None else ' --pykinml DIR'} --seeds {seeds}"
    write_report(json_file, command, {"threads": 1, "jobs": jobs, "rows": rows})


def spread(errors: Iterable[float]) -> str:
    """Mean and range."""
    found = list(errors)
    return f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def table_of_ways(rows: list[dict[str, Any]]) -> Table:
    """A line for each way to split: the error of a run, of three seeds."""
    table = Table("data", "split by", "energy MAE, kcal/mol", "force MAE, kcal/mol/Å")
    for data, ways in WAYS.items():
        for way in ways:
            found = [row for row in rows if (row["data"], row["way"]) == (data, way)]
            if found:
                table.add_row(data, way, *(spread(row[f"{kind}_mae"] for row in found) for kind in ("energy", "force")))
    return table


def table_of_names(rows: list[dict[str, Any]]) -> Table:
    """A line for each name, the worst first: the errors where it is held out, and in the test sets of random splits."""
    table = Table("name", "structures", "held out: energy", "force", "random: energy", "force", "of structures")
    held_out = [row for row in rows if row["held_out"]]
    for row in sorted(held_out, key=lambda row: -row["energy_mae"]):
        *others, number = random_errors(rows, row["held_out"])
        shown = [f"{value:.2f}" for value in (row["energy_mae"], row["force_mae"], *others)]
        table.add_row(row["held_out"], str(row["structures"][2]), *shown, str(number))
    return table


def random_errors(rows: list[dict[str, Any]], name: str) -> tuple[float, float, int]:
    """Energy and force MAE of a name's structures in the test sets of random splits, and how many those were."""
    of_runs = [row["groups"].get(name) for row in rows if (row["data"], row["way"]) == (BUNDLED, RANDOM)]
    found = [each for each in of_runs if each is not None]
    number = sum(size for size, _, _ in found)
    means = [sum(each[0] * each[k] for each in found) / number if number else np.nan for k in (1, 2)]
    return float(means[0]), float(means[1]), number


if __name__ == "__main__":
    typer.run(main)
