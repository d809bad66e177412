"""How long do preparing C5H5 and one epoch of each kind take, and with how much memory?

    python -m bench.training --data DIR [--epochs 6] [--threads 1] [--json bench/results/training.json]

DIR holds PyKinML's example data (`C5H5.db`, `sample_tvt.txt`). Each case is one process that runs what users run:
`prepare`, or `fit` on 2000 training structures with batches of 50, networks 224-48-24-12-1 and float64; seconds are
the median over the epochs after the first (validation on 48 structures included), memory is the process's peak.
PyKinML's figures stand beside them as they were measured, once, on two shared cores; they are no ratio of one run.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from pykinml_func.config import RunConfig
from pykinml_func.config.build import build_config
from pykinml_func.training.fit import fit, prepare
from pykinml_func.training.reporter import SilentReporter


class Case(NamedTuple):
    """One process of the benchmark."""

    name: str
    settings: dict[str, Any]
    pykinml: str
    """what PyKinML 1.1.2 needed, as measured before on two shared cores"""


_JACOBIAN = {"forces": True, "force_path": "jacobian"}
_POSITIONS = {"forces": True, "force_path": "positions"}

CASES = (
    Case("prepare AEVs and Jacobians", _JACOBIAN, "102 s"),
    Case("energy epoch, eager", {"compile": "off"}, "0.37 s"),
    Case("energy epoch, compiled", {"compile": "on"}, "0.37 s"),
    Case("force epoch, jacobian, eager", {**_JACOBIAN, "compile": "off"}, "78 s, 9.9 GB"),
    Case("force epoch, positions, eager", {**_POSITIONS, "compile": "off"}, "78 s, 9.9 GB"),
    Case("force epoch, positions, compiled", {**_POSITIONS, "compile": "on"}, "78 s, 9.9 GB"),
)


class _Recorder(SilentReporter):
    """Keeps the time of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def epoch(self, record: dict[str, float], epochs: int) -> None:  # noqa: ARG002
        self.epochs.append(record["seconds"])


def measure(case: Case, data: Path, scratch: Path, epochs: int, threads: int) -> dict[str, Any]:
    """Run one case in this process."""
    config = _config(case, data, scratch, epochs, threads)
    recorder = _Recorder()
    if case.name.startswith("prepare"):
        started = time.perf_counter()
        prepare(config, recorder)
        seconds = {"seconds": time.perf_counter() - started}
    else:
        fit(config, recorder)
        rest = recorder.epochs[1:]
        seconds = {
            "seconds": statistics.median(rest),
            "spread": max(rest) - min(rest),
            "first_epoch": recorder.epochs[0],
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"case": case.name, **seconds, "peak_bytes": peak, "pykinml": case.pykinml}


def _config(case: Case, data: Path, scratch: Path, epochs: int, threads: int) -> RunConfig:
    common = {
        "input": [str(data / "C5H5.db")],
        "split_files": [str(data / "sample_tvt.txt")],
        "split": (2000, 48, 0),
        "prepared": scratch / "prepared",
        "output": scratch / case.name.replace(" ", "_").replace(",", ""),
        "epochs": epochs,
        "threads": threads,
    }
    return build_config(common | case.settings)


def main(
    data: Annotated[Path, typer.Option(help="directory of C5H5.db and sample_tvt.txt")],
    epochs: Annotated[int, typer.Option(help="epochs a case")] = 6,
    threads: Annotated[int, typer.Option(help="CPU threads of the epochs")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
    case: Annotated[int | None, typer.Option(hidden=True)] = None,
    scratch: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every case, each in a process of its own, and print a table."""
    if case is not None and scratch is not None:
        print(json.dumps(measure(CASES[case], data, scratch, epochs, threads)))
        return
    with tempfile.TemporaryDirectory() as directory:
        rows = [_measure_apart(number, data, Path(directory), epochs, threads) for number in range(len(CASES))]
    _print(rows)
    if json_file is not None:
        command = f"python -m bench.training --data DIR --epochs {epochs} --threads {threads} --json {json_file}"
        report = {"command": command, **machine(), "threads": threads, "rows": rows}
        json_file.write_text(json.dumps(report, indent=1) + "\n")


def _measure_apart(number: int, data: Path, scratch: Path, epochs: int, threads: int) -> dict[str, Any]:
    options = {"--data": data, "--epochs": epochs, "--threads": threads, "--case": number, "--scratch": scratch}
    arguments = [str(part) for pair in options.items() for part in pair]
    command = [sys.executable, "-m", "bench.training", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{row['case']}: {row['seconds']:.3f} s", flush=True)
    return row


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("C5H5", "seconds", "spread", "first epoch", "peak memory", "PyKinML 1.1.2")
    for row in rows:
        extra = [f"{row[key]:.3f}" if key in row else "" for key in ("spread", "first_epoch")]
        table.add_row(row["case"], f"{row['seconds']:.3f}", *extra, f"{row['peak_bytes'] / 1e9:.2f} GB", row["pykinml"])
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
