"""How much faster do several ranks train than one, and what would 8 GPUs x 16 nodes do?

    python -m bench.scaling --data DIR [--repeats 3] [--json bench/results/scaling.json]

DIR holds PyKinML's example data (`C5H5.db`, `sample_tvt.txt`). Every run is `fit` on 2000 structures of C5H5 (48
validate) in processes of its own, started by torchrun, one thread a rank unless the row says otherwise; networks
224-48-24-12-1 for C and H, float64. The runs take turns. Seconds are those of an epoch after the 41 in which every step
is recorded, training and validation; the table has the median of the runs' medians, and the least and largest of them.

Strong scaling: the same batches, shared out among the ranks. Weak scaling: batches as many times larger as there are
ranks, so that each has as much to do a step, and an epoch fewer steps. Both against one rank, at the batch that one
would have. Threads: one rank that has as many threads, in place of the ranks.

Communication is the part of the epoch between a rank having its gradients and having everyone's, a mean over the ranks;
of that, waiting is the time until the last rank had its own, and the rest is what the addition took. It includes
nothing that a rank does while others wait for it. On a GPU each step waits for its kernels before and after.

`bench.projection` has the second question: a model on paper, printed and written by the same command.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.checks import ExampleData, JsonFile
from bench.machine import write_report
from bench.peers.problem import TRAINED, training_settings
from bench.peers.process import ROOT, thread_variables
from bench.projection import measured_parts, print_projection, projected
from pykinml_func.config.build import build_config
from pykinml_func.training.fit import prepare
from pykinml_func.training.reporter import SilentReporter

KINDS: dict[str, dict[str, Any]] = {"forces": {"forces": True, "force_path": "positions"}, "energies": {}}
BATCHES = (50, 500, 2000)
_WARM = 41
"""Epochs: a step is recorded when its shape comes the 41st time, and that of the validation comes once an epoch."""


class Case(NamedTuple):
    """A way to train."""

    kind: str
    way: str
    """one, strong, weak or threads"""
    ranks: int
    batch: int
    threads: int = 1
    """of each rank"""

    @property
    def rival(self) -> Case:
        """What it is compared with: one rank, at the batch that one would have."""
        return Case(self.kind, "one", 1, self.batch // (self.ranks if self.way == "weak" else 1))


class Seen(NamedTuple):
    """What one run gave: medians over its epochs, and parts of all of them."""

    seconds: float
    communication: float
    """part of the time, a mean over ranks"""
    waiting: float
    """part of the time until the last rank had its gradients, a mean over ranks"""
    addition_seconds: float
    """from then on until this rank had the sums"""
    n_bytes: int
    """of gradients, a step"""


def cases(ranks: list[int], batches: tuple[int, ...], device: str) -> list[Case]:
    """One rank and several, at every batch; threads only where the device is the CPU."""
    found = []
    for kind in KINDS:
        for batch in batches:
            found.append(Case(kind, "one", 1, batch))
            for number in ranks:
                found.append(Case(kind, "strong", number, batch))
                if number * batch <= TRAINED:
                    found.append(Case(kind, "weak", number, number * batch))
                if device == "cpu":
                    found.append(Case(kind, "threads", 1, batch, number))
    return found


def run(case: Case, data: Path, scratch: Path, epochs: int, device: str) -> Seen:
    """Train in processes of its own. Raises CalledProcessError where they fail."""
    settings = _settings(case, data, scratch, epochs, device)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(case.ranks)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "bench.scaling_rank"]
    command += [json.dumps(settings, default=str), str(scratch)]
    subprocess.run(command, check=True, cwd=ROOT, env=thread_variables(case.threads))
    ranks = [json.loads((scratch / f"{rank}.json").read_text()) for rank in range(case.ranks)]
    return seen(ranks, -(-TRAINED // case.batch))


def _settings(case: Case, data: Path, scratch: Path, epochs: int, device: str) -> dict[str, Any]:
    own = {
        "epochs": _WARM + epochs,
        "batch_size": case.batch,
        "threads": case.threads,
        "device": device,
        "compile": "off",
        "prepared": scratch / "prepared",
        "output": scratch / "run",
    }
    return training_settings(data.resolve()) | own | KINDS[case.kind]


def seen(ranks: list[dict[str, Any]], n_steps: int) -> Seen:
    """What the ranks wrote, less the first epochs. n_steps: an epoch."""
    counted = ranks[0]["seconds"][_WARM:]
    total = sum(counted)
    steps = list(zip(*(rank["calls"][_WARM * n_steps :] for rank in ranks), strict=True))
    if not steps:
        return Seen(statistics.median(counted), 0.0, 0.0, 0.0, ranks[0]["n_bytes"])
    within = waiting = 0.0
    additions = []
    for step in steps:
        last = max(start for start, _ in step)
        within += sum(end - start for start, end in step) / len(step)
        waiting += sum(last - start for start, _ in step) / len(step)
        additions.append(statistics.mean(end - last for _, end in step))
    parts = within / total, waiting / total
    return Seen(statistics.median(counted), *parts, statistics.median(additions), ranks[0]["n_bytes"])


def measure(asked: list[Case], repeats: int, do: Callable[[Case], Seen]) -> list[dict[str, Any]]:
    """A row for each case; the runs take turns."""
    found: dict[Case, list[Seen]] = {case: [] for case in asked}
    for number in range(repeats):
        for case in asked:
            found[case].append(do(case))
            last = found[case][-1]
            print(f"round {number + 1}: {' '.join(map(str, case))}: {last.seconds:.4f} s", file=sys.stderr, flush=True)
    return [_row(case, found) for case in asked]


def _row(case: Case, found: dict[Case, list[Seen]]) -> dict[str, Any]:
    seconds = [each.seconds for each in found[case]]
    middle = {name: statistics.median(getattr(each, name) for each in found[case]) for name in Seen._fields}
    one = statistics.median(each.seconds for each in found[case.rival])
    speed_up = one / middle["seconds"]
    efficiency = speed_up / (case.ranks * case.threads)
    spread = {"least": min(seconds), "most": max(seconds)}
    return {**case._asdict(), **middle, **spread, "speed_up": speed_up, "efficiency": efficiency}


def main(
    data: ExampleData,
    repeats: Annotated[int, typer.Option(help="runs of each", min=1)] = 3,
    epochs: Annotated[int, typer.Option(help="epochs that are timed of each run", min=1)] = 8,
    device: Annotated[str, typer.Option(help="cpu: 1 and 2 ranks; cuda: 1 to all GPUs, by twos")] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Measure every case and the parts of the model on paper, and print both."""
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter(f"--device must be one that torch can use here, got {device}; leave it out")
    ranks = [2] if device == "cpu" else [2**k for k in range(1, torch.cuda.device_count().bit_length())]
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        asked = cases(ranks, BATCHES, device)
        for kind in KINDS:
            settings = _settings(Case(kind, "one", 1, BATCHES[0]), data, scratch, epochs, "cpu")
            prepare(build_config(settings), SilentReporter())
        rows = measure(asked, repeats, partial(run, data=data, scratch=scratch, epochs=epochs, device=device))

    parts = measured_parts(data)
    paper = projected(parts)
    _print(rows)
    print_projection(parts, paper)
    command = f"python -m bench.scaling --data DIR --repeats {repeats} --epochs {epochs} --device {device}"
    figures = {"device": device, "repeats": repeats, "rows": rows, "parts": parts._asdict(), "projection": paper}
    write_report(json_file, command, figures)


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("trained to", "way", "ranks", "threads", "batch", "s an epoch", "least", "most", "speed-up")
    for name in ("efficiency", "communication", "of that waiting", "addition, ms", "kB a step"):
        table.add_column(name)
    for row in rows:
        case = [str(row[name]) for name in ("kind", "way", "ranks", "threads", "batch")]
        seconds = [f"{row[name]:.4f}" for name in ("seconds", "least", "most")]
        table.add_row(*case, *seconds, f"{row['speed_up']:.2f}", f"{row['efficiency']:.0%}", *_talk(row))
    Console(width=160).print(table)


def _talk(row: dict[str, Any]) -> list[str]:
    if row["ranks"] == 1:
        return ["-"] * 4
    parts = [f"{row[name]:.1%}" for name in ("communication", "waiting")]
    return [*parts, f"{1e3 * row['addition_seconds']:.2f}", f"{1e-3 * row['n_bytes']:.0f}"]


if __name__ == "__main__":
    typer.run(main)
