"""How near to what the machine can do is the work on C5H5?

    python -m bench.limit --data DIR [--threads 1] [--epochs 6] [--json bench/results/limit.json]

DIR holds PyKinML's example data (`C5H5.db`, `sample_tvt.txt`). `bench.rates` measures the machine in the same run,
`bench.counts` says what each row cannot do without, and its time at the machine's rates is

    max(flops / rate of matrix products, bytes / rate of reading) + exponentials / their rate,

with the faster of a large square product and those of the networks' first layer, and of torch's and our exponentials.
That is strict: arithmetic that is no matrix product runs below their rate on any machine. Seconds are those of what
users call: epochs of `fit` (2000 structures in batches of 50, then 48 validate; the median after those in which steps
are recorded and compiled), `Predictor.predict`, `fill_aevs` and the calculator. Networks 224-48-24-12-1 for C and H;
float64 unless a row says otherwise. What binds is seen in the split of the same work under torch's profiler.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_map

from bench.checks import ExampleData, JsonFile
from bench.counts import Near, Task, Work, aev_work, near_counts, task_work
from bench.machine import write_report
from bench.peers.moving import moving
from bench.peers.problem import AEV, MODEL, TRAINED, VALIDATED, images, networks, read, training_settings
from bench.peers.protocol import timed
from bench.rates import all_rates
from bench.recorder import Recorder
from bench.split import Split, profiler, split_of
from pykinml_func import Predictor, PyKinMLCalculator
from pykinml_func.config.build import build_config
from pykinml_func.data.featurize import fill_aevs
from pykinml_func.training.fit import fit
from pykinml_func.types import Params, Structures

STRUCTURES, BATCH = 2112, 50
_WARM = 3
_REPEATS = 7
_CALLS = 300

_EPOCHS: dict[str, dict[str, Any]] = {
    "energy epoch, AEVs cached": {},
    "force epoch, positions": {"forces": True, "force_path": "positions"},
    "force epoch, Jacobians cached": {"forces": True, "force_path": "jacobian"},
}


class Measured(NamedTuple):
    """What a row took."""

    seconds: float
    spread: float
    """longest less shortest"""
    split: Split


def train(settings: dict[str, Any], data: Path, scratch: Path, epochs: int, threads: int) -> Measured:
    """Epochs of `fit`; settings: of `pykinml train`."""
    common = {
        **training_settings(data),
        "batch_size": BATCH,
        "prepared": scratch / "prepared",
        "output": scratch / "run",
        "threads": threads,
    }
    profiled = profiler()
    recorder = Recorder(_WARM, epochs, profiled)
    fit(build_config(common | settings), recorder, overwrite=True)
    return Measured(recorder.median, recorder.spread, split_of(profiled, recorder.median))


def repeated(call: Callable[[], object], repeats: int) -> Measured:
    """Of one call, after enough to have it recorded."""
    for _ in range(repeats):
        call()
    found = [timed(call) for _ in range(repeats)]
    with profiler() as profiled:
        call()
    seconds = statistics.median(found)
    return Measured(seconds, max(found) - min(found), split_of(profiled, seconds))


def epoch_work(near: Near, settings: dict[str, Any]) -> Work:
    """Training on most of the structures, and evaluating the rest of the epoch. near: of all structures of the set."""
    features = settings.get("force_path", "aevs")
    learned, judged = (Near(*(count * part // STRUCTURES for count in near)) for part in (TRAINED, VALIDATED))
    tasks: tuple[Task, Task] = ("train_energies", "energies")
    if settings.get("forces"):
        tasks = "train_forces", "energies_and_forces"
    training = task_work(MODEL, learned, tasks[0], features, 8)
    return training.plus(task_work(MODEL, judged, tasks[1], features, 8))


def limit_seconds(work: Work, rates: dict[str, float]) -> float:
    """Of work at the machine's rates of one precision."""
    exponentials = max(rates["exp_torch"], rates.get("exp_kernel", 0.0))
    matmul = max(rates["matmul"], rates["layer"])
    return max(work.flops / matmul, work.n_bytes / rates["read"]) + work.exponentials / exponentials


def rows(
    data: Path, scratch: Path, epochs: int, threads: int, rates: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """Every row, measured and counted."""
    structures = read(data)
    atoms = images(structures)
    near = near_counts(AEV, [each.positions for each in atoms])
    found = [
        _row(name, train(settings, data, scratch, epochs, threads), epoch_work(near, settings), rates["float64"])
        for name, settings in _EPOCHS.items()
    ]
    for dtype in (torch.float64, torch.float32):
        name, size = str(dtype).removeprefix("torch."), dtype.itemsize
        measured = repeated(partial(Predictor(MODEL, _params(dtype)).predict, atoms), _REPEATS)
        work = task_work(MODEL, near, "energies_and_forces", "positions", size)
        found.append(_row(f"E + F of 2112 structures, {name}", measured, work, rates[name]))
    found.append(_aevs_row(structures, near, rates["float64"]))
    one = near_counts(AEV, [atoms[0].positions])
    calculator = PyKinMLCalculator((MODEL, _params(torch.float64)))
    measured = repeated(moving(calculator, atoms[0].numbers, atoms[0].positions), _CALLS)
    work = task_work(MODEL, one, "energies_and_forces", "positions", 8)
    return [*found, _row("E + F of one structure", measured, work, rates["float64"])]


def _params(dtype: torch.dtype) -> Params:
    drawn = networks()
    return drawn._replace(networks=tree_map(lambda leaf: leaf.to(dtype), drawn.networks))


def _aevs_row(structures: Structures, near: Near, rates: dict[str, float]) -> dict[str, Any]:
    out = np.empty((len(structures.numbers), AEV.length))
    measured = repeated(lambda: fill_aevs(AEV, structures, "native", out, lambda _: None), _REPEATS)
    work = aev_work(AEV, near, "aevs").plus(Work(n_bytes=out.nbytes))
    return _row("AEVs of 2112 structures", measured, work, rates)


def _row(name: str, measured: Measured, work: Work, rates: dict[str, float]) -> dict[str, Any]:
    limit = limit_seconds(work, rates)
    row = {"row": name, "seconds": measured.seconds, "spread": measured.spread, "limit_seconds": limit}
    print(f"{name}: {measured.seconds:.4g} s, {limit / measured.seconds:.0%} of the limit", flush=True)
    return {**row, "fraction": limit / measured.seconds, **work._asdict(), "split": measured.split._asdict()}


def main(
    data: ExampleData,
    epochs: Annotated[int, typer.Option(help="epochs that are timed of each training", min=1)] = 6,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 1,
    json_file: JsonFile = None,
) -> None:
    """Measure the machine and every row, and print two tables."""
    torch.set_num_threads(threads)
    rates = all_rates(len(AEV.elements), 5 * BATCH, AEV.length, MODEL.neurons[0])
    with tempfile.TemporaryDirectory() as directory:
        found = rows(data, Path(directory), epochs, threads, rates)
    _print(rates, found)
    command = f"python -m bench.limit --data DIR --epochs {epochs} --threads {threads}"
    write_report(json_file, command, {"threads": threads, "rates": rates, "rows": found})


def _print(rates: dict[str, dict[str, float]], found: list[dict[str, Any]]) -> None:
    console = Console(width=150)
    table = Table(f"10^9/s, {torch.get_num_threads()} threads", *rates)
    for name in rates["float64"]:
        table.add_row(name, *(f"{1e-9 * of_precision[name]:.2f}" for of_precision in rates.values()))
    console.print(table)
    parts = list(Split._fields)
    table = Table("C5H5", "ms", "limit, ms", "reached", "GFLOP", "10^9 exp", "MB", *(f"{part}, ms" for part in parts))
    for row in found:
        milliseconds = [f"{1e3 * row[name]:.3g}" for name in ("seconds", "limit_seconds")]
        work = [f"{1e-9 * row['flops']:.3g}", f"{1e-9 * row['exponentials']:.3g}", f"{1e-6 * row['n_bytes']:.3g}"]
        split = [f"{1e3 * row['split'][part]:.3g}" for part in parts]
        table.add_row(row["row"], *milliseconds, f"{row['fraction']:.0%}", *work, *split)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
