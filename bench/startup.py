"""How long does a user wait before a command does its work?

    python -m bench.startup --data DIR [--runs 5] [--json bench/results/startup.json]

DIR holds PyKinML's example data (`C5H5.db`). Each figure is the time of a whole process, from its start to its end, or
to the line that `pykinml train` prints of its first epoch, where it is stopped. The rows take turns, and what is in the
table is the median of the runs after the first. The first run of each stands beside it: its files may have to come from
the disk, and of a training it prepares the data and compiles, with an empty cache; the later ones have the same
settings. Trainings are of 2000 structures, with all settings but `--forces` at their defaults: 200 epochs, in batches
of 50.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from ase import Atoms
from ase.io import write
from rich.console import Console
from rich.table import Table

from bench.checks import PYKINML, JsonFile, check_command
from bench.machine import write_report
from pykinml_func.data.formats.sources import read_structures
from pykinml_func.errors import PyKinMLError


class Case(NamedTuple):
    """One command."""

    name: str
    command: tuple[str, ...]
    target: float | None = None
    """s, within which it is to be done"""
    last_word: str | None = None
    """the first word of the line that ends the time; None: the end of the process does"""


_TRAIN = (PYKINML, "train", "--input", "C5H5.db", "--split", "2000,48,0", "--overwrite")
_TINY = (*_TRAIN[:-3], "--split", "40,8,0", "--epochs", "1", "--compile", "off", "--output", "tiny")

CASES = (
    Case("python -c pass", (sys.executable, "-c", "pass")),
    Case('python -c "import torch"', (sys.executable, "-c", "import torch")),
    Case("pykinml --help", (PYKINML, "--help"), 0.5),
    Case("pykinml predict, one C5H5", (PYKINML, "predict", "tiny/model.safetensors", "one.xyz"), 3.0),
    Case("pykinml train, energies: first epoch", (*_TRAIN, "--output", "energies"), 5.0, "1/200"),
    Case("pykinml train --forces: first epoch", (*_TRAIN, "--forces", "--output", "forces"), 5.0, "1/200"),
)


def measure(case: Case, scratch: Path) -> float:
    """Run one command in `scratch`. Returns s. Raises CalledProcessError for a command that fails."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled")}
    started = time.perf_counter()
    with subprocess.Popen(case.command, cwd=scratch, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if case.last_word is not None and line.split()[:1] == [case.last_word]:
                seconds = time.perf_counter() - started
                process.send_signal(signal.SIGINT)  # as by Ctrl-C, which leaves the run's folder in order
                process.communicate()
                return seconds
        code = process.wait()
    if code != 0 or case.last_word is not None:
        raise subprocess.CalledProcessError(code, case.command)
    return time.perf_counter() - started


def _prepare(data: Path, scratch: Path) -> None:
    """Put the database, one of its structures, and a model of one epoch into `scratch`."""
    (scratch / "C5H5.db").symlink_to((data / "C5H5.db").resolve())
    first = read_structures([data / "C5H5.db"])[0]
    write(scratch / "one.xyz", Atoms(first.numbers, first.positions))
    subprocess.run(_TINY, cwd=scratch, check=True, stdout=subprocess.DEVNULL)


def _row(case: Case, seconds: list[float]) -> dict[str, Any]:
    rest = seconds[1:]
    spread = {"seconds": statistics.median(rest), "least": min(rest), "most": max(rest)}
    return {"case": case.name, **spread, "first_run": seconds[0], "target": case.target}


def _database(folder: Path) -> Path:
    """The folder, if it has the database. Raises BadParameter."""
    try:
        read_structures([folder / "C5H5.db"])
    except PyKinMLError as error:
        raise typer.BadParameter(str(error)) from None
    return folder


def main(
    data: Annotated[Path, typer.Option(help="directory of C5H5.db", callback=_database)],
    runs: Annotated[int, typer.Option(help="runs of each after the first", min=1)] = 5,
    json_file: JsonFile = None,
) -> None:
    """Time every command and print a table."""
    check_command()
    seconds: list[list[float]] = [[] for _ in CASES]
    with tempfile.TemporaryDirectory() as directory:
        _prepare(data, Path(directory))
        for run in range(runs + 1):
            for case, found in zip(CASES, seconds, strict=True):
                found.append(measure(case, Path(directory)))
                print(f"run {run}, {case.name}: {found[-1]:.2f} s", flush=True)
    rows = [_row(case, found) for case, found in zip(CASES, seconds, strict=True)]
    _print(rows)
    write_report(json_file, f"python -m bench.startup --data DIR --runs {runs}", {"rows": rows})


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("command", "seconds", "least", "most", "first run", "to reach")
    for row in rows:
        figures = [f"{row[key]:.2f}" for key in ("seconds", "least", "most", "first_run")]
        table.add_row(row["case"], *figures, "" if row["target"] is None else f"{row['target']:g}")
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
