"""How long from the database to a test error of 1.0 and 0.5 kcal/mol?

    python -m bench.accuracy --data DIR [--only ours|pykinml|torchani] [--json bench/results/accuracy.json]

DIR holds PyKinML's example data (`C5H5.db`, `sample_tvt.txt`): 2000 structures to train on, 48 to validate, 64 to test.
Networks are 224-48-24-12-1, Gaussian, without biases (PyKinML has no others), in float64. Each run is a process of its
own that begins with nothing prepared; time counts from its start, and holds imports, preparation, recording or
compilation, training and validation. The model that counts after an epoch is the one that would be kept there: that of
the least validation RMSE of the energies so far. Its test error takes no counted time. An error is reached once it is
not exceeded any more up to the end of the run.

The energies of C5H5.db do not all fit together: in the same region those of C5H5/1714 and later, to which all 64 test
structures belong, lie about 1.2 kcal/mol above those of the first 1713. A potential that fits both halves the gap, so a
test error of about 0.5 kcal/mol is mostly this gap, where the scatter about it is 0.15.

- pykinml_func: `pykinml train --recipe fast`. Each epoch's state is saved (`--save-every 1`; that is counted), dated by
  its file, and its test error computed when the process has ended.
- PyKinML: its preparation and its trainer, energies alone (an epoch with forces takes more than a minute), with the
  defaults of its parser. Its trainer tests after each epoch; the time of that is taken off.
- TorchANI: the loop of its documentation with energies and forces, Adam, and a cosine schedule over 300 epochs;
  networks are copied after each epoch, and tested at the end.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench.checks import PYKINML, ExampleData, JsonFile, check_command
from bench.machine import write_report
from bench.peers.environments import environment
from bench.peers.problem import images, read, write_problem
from bench.peers.process import ROOT, Settings, thread_variables, worker_variables
from pykinml_func import Predictor, load_model
from pykinml_func.errors import PyKinMLError
from pykinml_func.types import Structures
from pykinml_func.units import KCAL_PER_MOL

Tool = Literal["ours", "pykinml", "torchani"]
TOOLS: dict[Tool, str] = {
    "ours": "pykinml_func, --recipe fast",
    "pykinml": "PyKinML 1.1.2",
    "torchani": "TorchANI 2.9.0",
}
TARGETS = {1.0: 30.0, 0.5: 180.0}
"""kcal/mol: seconds, within which ours is to reach it"""
OURS = ("--recipe", "fast")


class Point(NamedTuple):
    """The model after an epoch."""

    seconds: float
    """since the process started"""
    valid_rmse: float
    test_mae: float
    """kcal/mol, as is valid_rmse"""


def kept(points: Iterable[Point]) -> list[Point]:
    """The points at which the model that is kept changes."""
    found: list[Point] = []
    for point in points:
        if not found or point.valid_rmse < found[-1].valid_rmse:
            found.append(point)
    return found


def reached(points: Iterable[Point], target: float) -> float | None:
    """Seconds until the kept model's test error is at most `target` kcal/mol, and is so in each that is kept later.

    None where it is not at the end: an error that was low for an epoch is luck, which nobody who trains can see.
    """
    found = None
    for point in kept(points):
        if point.test_mae > target:
            found = None
        elif found is None:
            found = point.seconds
    return found


def run_ours(data: Path, scratch: Path, seed: int, threads: int) -> tuple[list[Point], float]:
    """A run of the command line: its points, and the seconds of the whole process."""
    output = scratch / f"run_{seed}"
    options = {
        "--input": data / "C5H5.db",
        "--split-files": data / "sample_tvt.txt",
        "--split": "2000,48,0",
        "--seeds": f"{seed},{seed + 1}",
        "--save-every": 1,
        "--prepared": scratch / f"prepared_{seed}",
        "--output": output,
    }
    command = [PYKINML, "train", *OURS, "--no-biases", *(str(part) for pair in options.items() for part in pair)]
    variables = {**thread_variables(threads), "TORCHINDUCTOR_CACHE_DIR": str(scratch / f"compiled_{seed}")}
    started = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=variables)
    return _points_of(output, started, _tested(data)), time.time() - started


def _tested(data: Path) -> Structures:
    """The structures that the split file marks as test."""
    lines = [line.split() for line in (data / "sample_tvt.txt").read_text().splitlines() if line.strip()]
    names = {name for name, mark, *_ in lines if mark == "-1"}
    structures = read(data)
    return structures.take([m for m, name in enumerate(structures.ids) if name in names])


def _points_of(directory: Path, started: float, tested: Structures) -> list[Point]:
    """The points at which the kept model of a run directory changed. started: s, on the clock that dates files."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    records = {int(record["epoch"]): record["valid_energy_rmse"] for record in map(json.loads, lines)}
    files = [directory / "checkpoints" / f"epoch_{epoch:05d}.safetensors" for epoch in records]
    pairs = zip(files, records.values(), strict=True)
    dated = kept(
        Point(file.stat().st_mtime - started, rmse, float(number)) for number, (file, rmse) in enumerate(pairs)
    )
    return [point._replace(test_mae=_test_mae(files[int(point.test_mae)], tested)) for point in dated]


def _test_mae(model: Path, tested: Structures) -> float:
    found = Predictor(*load_model(model)).predict(images(tested))
    errors = np.array([each.energy for each in found]) - tested.energies[:, 0]
    return float(np.abs(errors).mean()) * KCAL_PER_MOL


def run_peer(tool: Tool, data: Path, scratch: Path, threads: int, limit: float) -> tuple[list[Point], float]:
    """A run of another tool's own training, ended after `limit` s; as `run_ours`. Raises PyKinMLError."""
    python = environment(tool, lambda text: print(text, file=sys.stderr))
    settings = Settings(data.resolve(), scratch, write_problem(data, scratch), threads, "cpu")
    started = time.time()
    given = settings.as_json("float64", started=started, limit=limit)
    command, variables = [str(python), "-m", f"bench.peers.{tool}_accuracy", given], worker_variables(tool, threads)
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables, cwd=ROOT)
    points = [Point(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode or not points:
        raise PyKinMLError(f"{TOOLS[tool]} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return points, min(limit, time.time() - started)


def measured(
    tools: Iterable[Tool], data: Path, scratch: Path, seeds: int, threads: int, limit: float
) -> Iterator[dict[str, Any]]:
    """A row for each run: of ours `seeds`, of another tool one. Raises PyKinMLError."""
    for tool in tools:
        if tool == "ours":
            yield from (row(tool, seed, *run_ours(data, scratch, seed, threads)) for seed in range(seeds))
        else:
            yield row(tool, 0, *run_peer(tool, data, scratch, threads, limit))


def row(tool: Tool, seed: int, points: list[Point], whole: float) -> dict[str, Any]:
    """What is stored of a run."""
    best = kept(points)
    seconds = {str(target): reached(points, target) for target in TARGETS}
    figures = {"whole_seconds": whole, "last_mae": best[-1].test_mae, "least_mae": min(each.test_mae for each in best)}
    return {"tool": tool, "seed": seed, "seconds_to": seconds, **figures, "kept": best}


def cell(rows: list[dict[str, Any]], target: float) -> str:
    """Median and range of the seconds to a target, or the least error where a run did not reach it."""
    seconds = [found["seconds_to"][str(target)] for found in rows]
    if None in seconds:
        best = min(found["least_mae"] for found in rows)
        missed = f" in {seconds.count(None)} of {len(rows)} runs" if len(rows) > 1 else ""
        return f"not reached{missed} (best {best:.2f})"
    spread = f" ({min(seconds):.0f} to {max(seconds):.0f})" if len(rows) > 1 else ""
    return f"{statistics.median(seconds):.0f} s{spread}"


def table(rows: list[dict[str, Any]]) -> Table:
    """A line a tool."""
    made = Table("C5H5", *(f"to {target} kcal/mol" for target in TARGETS), "kept at the end", "whole run")
    made.add_row("asked of us", *(f"{seconds:g} s" for seconds in TARGETS.values()), "", "", end_section=True)
    for tool, name in TOOLS.items():
        found = [each for each in rows if each["tool"] == tool]
        if found:
            last, whole = (statistics.median(each[key] for each in found) for key in ("last_mae", "whole_seconds"))
            made.add_row(name, *(cell(found, target) for target in TARGETS), f"{last:.2f} kcal/mol", f"{whole:.0f} s")
    return made


def main(
    data: ExampleData,
    only: Annotated[Tool | None, typer.Option(help="one of the tools")] = None,
    json_file: JsonFile = None,
    seeds: Annotated[int, typer.Option(help="runs of ours, each of another seed", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads that every tool is given", min=1)] = 2,
    limit: Annotated[float, typer.Option(help="seconds that a run of another tool may take", min=1)] = 600,
) -> None:
    """Time the way to each error, and print a table."""
    tools = TOOLS if only is None else (only,)
    if "ours" in tools:
        check_command()
    rows = []
    try:
        with tempfile.TemporaryDirectory() as directory:
            for found in measured(tools, data, Path(directory), seeds, threads, limit):
                rows.append(found)
                print(f"{TOOLS[found['tool']]}, seed {found['seed']}: {found['seconds_to']}", flush=True)
    except PyKinMLError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    Console(width=130).print(table(rows))
    command = f"python -m bench.accuracy --data DIR --seeds {seeds} --threads {threads} --limit {limit:g}"
    write_report(json_file, command + (f" --only {only}" if only else ""), {"threads": threads, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
