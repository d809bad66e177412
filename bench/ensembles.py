"""What does an ensemble cost over one model, in training and in second derivatives?

    python -m bench.ensembles --data DIR [--members 8] [--epochs 10] [--threads 2] [--json bench/results/ensembles.json]

DIR holds PyKinML's example data (`C5H5.db`, `sample_tvt.txt`): 2000 structures in batches of 50, 48 that validate,
networks 224-48-24-12-1 for C and H, float64 unless a row says otherwise. A training is `fit` with `--ensemble`, one
alone and all members at once in turns, each with batches of its own and all with the same; seconds are medians over the
epochs after those in which steps are recorded (forces: positions path). All members are asked for in at most three
times the seconds of one.

Second derivatives are those of the first C5H5, at fresh positions in every call, by `PyKinMLCalculator.get_hessian`, by
`hessian_vector_product`, and by what `torch.func.hessian` makes of `energy`. A Hessian is asked for in 30 ms.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.table import Table

from bench.checks import ExampleData, JsonFile
from bench.machine import write_report
from bench.peers.problem import MODEL, images, networks, read, training_settings
from bench.peers.protocol import timed
from bench.recorder import Recorder
from pykinml_func import PyKinMLCalculator, energy, hessian_vector_product
from pykinml_func.config.build import build_config
from pykinml_func.training.fit import fit

TIMES_ONE, HESSIAN_SECONDS = 3.0, 30e-3
"""to reach"""
FORCES: dict[str, Any] = {"forces": True, "force_path": "positions"}
KINDS: dict[str, dict[str, Any]] = {
    "energies": {},
    "energies and forces": FORCES,
    "energies and forces, float32": FORCES | {"precision": "float32"},
}
DATA = ("all", "shared")
"""Values of ensemble_data: batches of each member's own, or the same for all."""

_ROUNDS = 3
_WARM_EPOCHS = 3
"""A step is recorded after 40 batches of a shape: in the second epoch."""


def epoch_seconds(
    data: Path, scratch: Path, kind: str, members: int, epochs: int, threads: int, sees: str = "all"
) -> float:
    """Median seconds of an epoch of training so many members. sees: as `DATA`."""
    own = {"ensemble": members, "threads": threads, "prepared": scratch / "prepared", "output": scratch / "run"}
    own |= {"ensemble_data": sees}
    recorder = Recorder(_WARM_EPOCHS, epochs)
    fit(build_config(training_settings(data) | KINDS[kind] | own), recorder, overwrite=True)
    return recorder.median


def training_rows(data: Path, members: int, epochs: int, threads: int) -> Iterator[dict[str, Any]]:
    """A row for each kind of training, and each kind of batches."""
    for kind, sees in product(KINDS, DATA):
        with tempfile.TemporaryDirectory() as folder:
            measure = partial(epoch_seconds, data, Path(folder), kind, epochs=epochs, threads=threads)
            rounds = [(measure(members=1), measure(members=members, sees=sees)) for _ in range(_ROUNDS)]
        one, together = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = [several / alone for alone, several in rounds]
        row = {"trained_to": kind, "ensemble_data": sees, "one_seconds": one, "seconds": together}
        yield {**row, "ratio": statistics.median(ratios), "least_ratio": min(ratios), "most_ratio": max(ratios)}


def derivative_rows(data: Path, members: int, calls: int) -> list[dict[str, Any]]:
    """A row for each way to second derivatives."""
    molecule = images(read(data).take(np.arange(1)))[0]
    models: Any = [(MODEL, networks(member)) for member in range(members)]
    one, several = PyKinMLCalculator(models[0]), PyKinMLCalculator(models)
    species = torch.tensor([MODEL.aev.elements.index(symbol) for symbol in molecule.symbols])
    by_torch = torch.func.hessian(partial(energy, MODEL, networks(), species))
    vector = torch.randn(len(molecule), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[Atoms], Any]] = {
        "Hessian": one.get_hessian,
        f"Hessian of {members} members": several.get_hessian,
        "Hessian times a vector": lambda atoms: hessian_vector_product(MODEL, networks(), species, _at(atoms), vector),
        "Hessian by torch.func.hessian": lambda atoms: by_torch(_at(atoms)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    generator = np.random.default_rng(0)
    for _ in range(calls + 1):  # the first, of which recording is a part, does not count
        moved = molecule.copy()
        moved.positions += 0.01 * generator.normal(size=moved.positions.shape)
        for name, way in ways.items():
            seconds[name].append(timed(partial(way, moved)))
    return [
        {"way": name, "seconds": statistics.median(found[1:]), "least": min(found[1:]), "most": max(found[1:])}
        for name, found in seconds.items()
    ]


def _at(atoms: Atoms) -> torch.Tensor:
    return torch.from_numpy(atoms.positions)


def main(
    data: ExampleData,
    members: Annotated[int, typer.Option(help="of the ensemble", min=2)] = 8,
    epochs: Annotated[int, typer.Option(help="epochs that are timed of each training", min=1)] = 10,
    calls: Annotated[int, typer.Option(help="second derivatives that are timed", min=1)] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 2,
    json_file: JsonFile = None,
) -> None:
    """Measure both, and print two tables."""
    torch.set_num_threads(threads)
    derivatives = derivative_rows(data, members, calls)
    training = []
    for row in training_rows(data, members, epochs, threads):
        training.append(row)
        kind = f"{row['trained_to']}, {row['ensemble_data']}"
        print(f"{kind}: {members} members take {row['ratio']:.2f} times as long as one", flush=True)
    _print(training, derivatives, members)
    command = f"python -m bench.ensembles --data DIR --members {members} --epochs {epochs} --calls {calls}"
    figures = {"threads": threads, "members": members, "training": training, "derivatives": derivatives}
    write_report(json_file, f"{command} --threads {threads}", figures)


def _print(training: list[dict[str, Any]], derivatives: list[dict[str, Any]], members: int) -> None:
    table = Table(
        "an epoch of C5H5 to", "--ensemble-data", "one, s", f"{members} members, s", "ratio", f"at most {TIMES_ONE:g}"
    )
    for row in training:
        ratio = f"{row['ratio']:.2f} ({row['least_ratio']:.2f} to {row['most_ratio']:.2f})"
        seconds = [f"{row[name]:.3f}" for name in ("one_seconds", "seconds")]
        table.add_row(
            row["trained_to"], row["ensemble_data"], *seconds, ratio, "met" if row["ratio"] <= TIMES_ONE else "missed"
        )
    Console(width=110).print(table)
    table = Table("C5H5", "ms", "least", "most", f"at most {1e3 * HESSIAN_SECONDS:g} ms")
    for row in derivatives:
        asked = row["way"] == "Hessian"
        verdict = ("met" if row["seconds"] <= HESSIAN_SECONDS else "missed") if asked else ""
        table.add_row(row["way"], *(f"{1e3 * row[name]:.1f}" for name in ("seconds", "least", "most")), verdict)
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
