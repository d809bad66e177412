"""Do preparing and training stay as fast, and small in memory, with a million structures?

    python -m bench.million --data DIR --scratch DIR [--structures 1000000] [--json bench/results/million.json]

The first DIR holds PyKinML's example data (`C5H5.db`, `sample_tvt.txt`), the second has room for 5 kB a structure. In
that, `bench.made_up` makes a database of as many structures, kept for the next time, and one of 2000. Then, each in a
process of its own, one thread a rank, float64:

    pykinml prepare                 with 1 and 2 workers: seconds from start to end
    pykinml train --epochs 1        to energies and forces, on the positions path, in batches of 50, on 1 and 2 ranks:
                                    the epoch's own seconds (80% train, 10% validate) a structure in it

The 2000 structures are trained on before and after, for 50 epochs, of which those count that come after the 41 in which
every step is recorded; the ratio is that of the seconds a structure. Peak memory is that of the largest process of a
command, as Linux keeps account of it: files that are mapped count as far as they are in memory.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.checks import ExampleData, JsonFile
from bench.machine import write_report
from bench.made_up import labelling_model, make_database
from bench.watched import watch

SMALL = 2000
RATIO, PEAK_BYTES = 1.3, 2e9
"""to reach: of the seconds a structure, and of every process"""
_PROCESSES = (1, 2)
_WARM, _EPOCHS = 41, 50
_COMMON = ("--forces", "--force-path", "positions", "--input", "C5H5.db", "--prepared", "prepared")


def prepare(folder: Path, n_structures: int, workers: int) -> dict[str, Any]:
    """Prepare anew. folder: of C5H5.db."""
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    command = ("-m", "pykinml_func", "prepare", *_COMMON, "--workers", str(workers))
    found = watch(command, folder, threads=1)
    written = sum(path.stat().st_size for path in (folder / "prepared").rglob("*") if path.is_file())
    row = {"structures": n_structures, "workers": workers, "seconds": found.seconds, "peak_bytes": found.peak_bytes}
    return {**row, "database_bytes": (folder / "C5H5.db").stat().st_size, "prepared_bytes": written}


def train(folder: Path, n_structures: int, ranks: int) -> dict[str, Any]:
    """Train on what is prepared. folder: of C5H5.db."""
    small = n_structures == SMALL
    command = ("-m", "pykinml_func", "train", *_COMMON, "--overwrite", "--output", "run", "--ranks", str(ranks))
    own = ("--epochs", str(_EPOCHS if small else 1), "--threads", "1", "--compile", "off")
    found = watch([*command, *own], folder, threads=1)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["seconds"] for line in lines][_WARM if small else 0 :]
    each = statistics.median(epochs) / (0.9 * n_structures)
    row = {"structures": n_structures, "ranks": ranks, "epoch_seconds": statistics.median(epochs)}
    return {**row, "seconds_a_structure": each, "command_seconds": found.seconds, "peak_bytes": found.peak_bytes}


def measure(folders: dict[int, Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of preparing, and those of training: the small set before and after the large. folders: of each size."""
    prepared, trained = [], []
    large = max(folders)
    for size, folder in sorted(folders.items()):
        for workers in _PROCESSES:
            prepared.append(prepare(folder, size, workers))
            _say(f"prepare, {size} structures, {workers} workers: {prepared[-1]['seconds']:.2f} s")
    for size in (SMALL, large, SMALL):
        for ranks in _PROCESSES:
            trained.append(train(folders[size], size, ranks))
            _say(f"train, {size} structures, {ranks} ranks: {1e6 * trained[-1]['seconds_a_structure']:.1f} us each")
    return prepared, trained


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number of ranks the ratio of large to small, and the largest process. rows: of training."""
    found = []
    for ranks in _PROCESSES:
        own = [row for row in rows if row["ranks"] == ranks]
        small, large = ([row for row in own if (row["structures"] == SMALL) is kind] for kind in (True, False))
        times = [statistics.mean(row["seconds_a_structure"] for row in kind) for kind in (large, small)]
        peak = max(row["peak_bytes"][0] for row in large)
        found.append({"ranks": ranks, "ratio": times[0] / times[1], "peak_bytes": peak})
    return found


def check_room(folder: Path) -> Path:
    """The folder, made if it is not there. Raises BadParameter for a file, and where Linux's /proc is not there."""
    if not Path("/proc/self/status").exists():
        raise typer.BadParameter("peak memory is read from /proc, which this system has not; run this on Linux")
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"must be a folder, got the file {folder}; name another")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def main(
    data: ExampleData,
    scratch: Annotated[Path, typer.Option(help="folder of the databases, kept for the next time", callback=check_room)],
    structures: Annotated[int, typer.Option(help="of the large database", min=SMALL + 1)] = 1_000_000,
    json_file: JsonFile = None,
) -> None:
    """Make the databases, measure, and print two tables."""
    model = labelling_model(data, scratch)
    folders = {size: scratch / str(size) for size in (SMALL, structures)}
    for size, folder in folders.items():
        make_database(folder / "C5H5.db", size, data, model, _say)
    prepared, trained = measure(folders)
    reached = verdicts(trained)
    _print(prepared, trained, reached)
    command = f"python -m bench.million --data DIR --scratch DIR --structures {structures}"
    targets = {"ratio": RATIO, "peak_bytes": PEAK_BYTES}
    write_report(json_file, command, {"prepare": prepared, "train": trained, "verdicts": reached, "targets": targets})


_say = partial(print, file=sys.stderr, flush=True)


def _print(prepared: list[dict[str, Any]], trained: list[dict[str, Any]], reached: list[dict[str, Any]]) -> None:
    console = Console(width=120)
    table = Table("prepare", "workers", "seconds", "structures/s", "largest processes, MB", "database, MB", "set, MB")
    for row in prepared:
        sizes = [f"{1e-6 * row[name]:.0f}" for name in ("database_bytes", "prepared_bytes")]
        rate = f"{row['structures'] / row['seconds']:,.0f}"
        cells = (f"{row['structures']:,}", str(row["workers"]), f"{row['seconds']:.1f}", rate, _megabytes(row), *sizes)
        table.add_row(*cells)
    console.print(table)
    table = Table("train", "ranks", "s an epoch", "us a structure", "largest processes, MB", "whole command, s")
    for row in trained:
        figures = [f"{row['epoch_seconds']:.2f}", f"{1e6 * row['seconds_a_structure']:.1f}", _megabytes(row)]
        table.add_row(f"{row['structures']:,}", str(row["ranks"]), *figures, f"{row['command_seconds']:.1f}")
    console.print(table)
    for each in reached:
        ratio, peak = each["ratio"], each["peak_bytes"]
        met = ["met" if found <= limit else "missed" for found, limit in ((ratio, RATIO), (peak, PEAK_BYTES))]
        console.print(
            f"{each['ranks']} ranks: {ratio:.2f} times the seconds a structure (at most {RATIO}: {met[0]}), largest "
            f"process {1e-9 * peak:.2f} GB (at most {1e-9 * PEAK_BYTES:g}: {met[1]})"
        )


def _megabytes(row: dict[str, Any]) -> str:
    return ", ".join(f"{1e-6 * size:.0f}" for size in row["peak_bytes"][:3])


if __name__ == "__main__":
    typer.run(main)
