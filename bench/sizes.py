"""What do mixed sizes cost in training, and how does prediction grow with the size of a structure?

    python -m bench.sizes [--epochs 6] [--threads 1] [--device cpu] [--json bench/results/sizes.json]

Mixed sizes: 2048 made-up molecules of 2 to 20 atoms and one to five elements (2000 train in batches of 50) are trained
by `fit`, to energies and to energies and forces (positions path); seconds are the median over the epochs after the
twelfth, by when a shape that one batch in ten has is recorded too. The uniform case is what a database of a single
formula takes, where no batch needs padding to hold another: such databases of 5, 10, 15 and 20 atoms, made by the same
rule, with the same model and the elements in the same shares, are trained too. Seconds between these sizes are
interpolated (below 5, continued), and their mean over the sizes of the mixed molecules is what the uniform case would
take: as many atoms in as many batches, so that the ratio of seconds is the ratio of the rates an atom. Splitting the
mixed database itself by size would not do: structures of a size that differ in composition need the padding that is to
be measured. Twice: with equal shares of the five elements, where the uniform case has no padding at all, and with those
of organic molecules, where it has some, since every network's atoms are padded to as many as hydrogen's.

Large structures: energy and forces of clusters of 10 to 500 atoms by `Predictor.predict`, one structure a call; beside
the seconds stand the near pairs of neighbours (angles), which is what the work is made of, and the process's peak
memory. The exponents are those of a power law fitted to 100 atoms and more: small clusters are mostly surface.

# M structures, n atoms of one structure
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_map

from bench.checks import JsonFile
from bench.counts import near_counts
from bench.machine import write_report
from bench.molecules import ELEMENTS, cluster, composition, labelled, molecule, whole_shares, write
from bench.peers.protocol import peak_bytes, timed
from bench.recorder import Recorder
from pykinml_func import AEVConfig, ModelConfig, Predictor, init_params
from pykinml_func.config.build import build_config
from pykinml_func.training.fit import fit

TRAINED, VALIDATED = 2000, 48
SMALLEST, LARGEST = 2, 20
UNIFORM = (5, 10, 15, 20)
ATOMS = (10, 20, 50, 100, 200, 300, 400, 500)
SHARES = {"equal": (0.2, 0.2, 0.2, 0.2, 0.2), "organic": (0.3, 0.5, 0.08, 0.08, 0.04)}
"""of C, H, N, O and F"""
KINDS: dict[str, dict[str, Any]] = {"energies": {}, "forces": {"forces": True, "force_path": "positions"}}
_WARM_EPOCHS = 12
_OTHERS = 8


def mixed_images(generator: np.random.Generator, shares: Sequence[float]) -> list[Atoms]:
    """Labelled molecules of all sizes."""
    sizes = generator.integers(SMALLEST, LARGEST + 1, TRAINED + VALIDATED).tolist()
    return [labelled(molecule(generator, composition(generator, size, shares))) for size in sizes]


def uniform_images(generator: np.random.Generator, size: int, shares: Sequence[float]) -> list[Atoms]:
    """Labelled molecules of one formula; a few are of another where it lacks an element, since `fit` refuses networks
    that nothing trains.
    """
    symbols = whole_shares(size, shares)
    others = 0 if set(symbols) == set(ELEMENTS) else _OTHERS
    chosen = [whole_shares(size, SHARES["equal"])] * others + [symbols] * (TRAINED + VALIDATED - others)
    return [labelled(molecule(generator, each)) for each in chosen]


def train(data: Path, epochs: int, threads: int, kind: str) -> dict[str, Any]:
    """Seconds of an epoch, and the shapes of batches that were recorded. data: a file in a folder of its own."""
    config = build_config(
        {
            "input": [str(data)],
            "elements": ",".join(ELEMENTS),
            "split": (TRAINED, VALIDATED, 0),
            "prepared": data.parent / "prepared",
            "output": data.parent / kind,
            "epochs": _WARM_EPOCHS + epochs,
            "threads": threads,
        }
        | KINDS[kind]
    )
    recorder = Recorder(_WARM_EPOCHS, epochs)
    result = fit(config, recorder, overwrite=True)
    return {"seconds": recorder.median, "spread": recorder.spread, "shapes": result.shapes}


def uniform_seconds(sizes: np.ndarray, measured: dict[int, float]) -> float:
    """Seconds that structures of `sizes` (M,) would take in batches of one size. measured: size -> seconds of as many
    structures of it.
    """
    known, seconds = np.array(list(measured)), np.array(list(measured.values()))
    slope = (seconds[1] - seconds[0]) / (known[1] - known[0])
    below = seconds[0] + slope * (sizes - known[0])
    return float(np.where(sizes < known[0], below, np.interp(sizes, known, seconds)).mean())


def mixed_rows(epochs: int, threads: int, scratch: Path) -> list[dict[str, Any]]:
    """A row for each choice of elements and each kind of training."""
    rows = []
    for shares_name, shares in SHARES.items():
        generator = np.random.default_rng(0)
        databases = {0: mixed_images(generator, shares)}
        databases |= {size: uniform_images(generator, size, shares) for size in UNIFORM}
        files = {}
        for size, images in databases.items():
            folder = scratch / f"{shares_name}_{size}"
            folder.mkdir()
            files[size] = write(folder / "molecules.extxyz", images)
        sizes = np.array([len(atoms) for atoms in databases[0]])
        for kind in KINDS:
            found = {size: train(file, epochs, threads, kind) for size, file in files.items()}
            mixed = found.pop(0)
            uniform = uniform_seconds(sizes, {size: row["seconds"] for size, row in found.items()})
            row = {"elements": shares_name, "trained_to": kind, **mixed, "uniform_seconds": uniform}
            row |= {"ratio": uniform / mixed["seconds"], "uniform": found, "atoms": int(sizes.sum())}
            rows.append(row)
            print(f"{shares_name}, {kind}: {row['ratio']:.0%} of the uniform rate", flush=True)
    return rows


def large_rows(repeats: int, device: str) -> list[dict[str, Any]]:
    """A row for each number of atoms, ascending, so that the peak of the process is that of the row."""
    config = ModelConfig(aev=AEVConfig(elements=ELEMENTS))
    params = init_params(config, torch.Generator().manual_seed(0))
    predictor = Predictor(config, tree_map(lambda leaf: leaf.to(device), params))
    generator, rows = np.random.default_rng(0), []
    for n_atoms in ATOMS:
        atoms = cluster(generator, n_atoms)
        seconds = [timed(partial(predictor.predict, [atoms])) for _ in range(repeats + 1)][1:]
        counts = near_counts(config.aev, [atoms.positions])
        spread = {"seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
        rows.append({"atoms": n_atoms, **spread, "angles": counts.angles, "peak_bytes": peak_bytes()})
        print(f"{n_atoms} atoms: {1e3 * rows[-1]['seconds']:.2f} ms", flush=True)
    return rows


def exponent(rows: Sequence[dict[str, Any]], quantity: str) -> float:
    """b of quantity = a n^b, by least squares of the logarithms, of 100 atoms and more."""
    large = [row for row in rows if row["atoms"] >= 100]
    atoms, values = (np.log([row[name] for row in large]) for name in ("atoms", quantity))
    return float(np.polyfit(atoms, values, 1)[0])


def main(
    epochs: Annotated[int, typer.Option(help="epochs that are timed of each training", min=1)] = 6,
    repeats: Annotated[int, typer.Option(help="predictions of each structure after the first", min=1)] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 1,
    device: Annotated[str, typer.Option(help="torch device of the predictions")] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Measure both, and print two tables."""
    torch.set_num_threads(threads)
    large = large_rows(repeats, device)
    with tempfile.TemporaryDirectory() as directory:
        mixed = mixed_rows(epochs, threads, Path(directory))
    exponents = {quantity: exponent(large, quantity) for quantity in ("seconds", "angles")}
    _print(mixed, large, exponents)
    command = f"python -m bench.sizes --epochs {epochs} --repeats {repeats} --threads {threads} --device {device}"
    figures = {"threads": threads, "mixed": mixed, "large": large, "exponents": exponents}
    write_report(json_file, command, figures)


def _print(mixed: list[dict[str, Any]], large: list[dict[str, Any]], exponents: dict[str, float]) -> None:
    table = Table("2 to 20 atoms", "trained to", "seconds", "spread", "uniform case", "rate over uniform", "shapes")
    for row in mixed:
        seconds = [f"{row[name]:.3f}" for name in ("seconds", "spread", "uniform_seconds")]
        table.add_row(row["elements"], row["trained_to"], *seconds, f"{row['ratio']:.0%}", str(row["shapes"]))
    Console(width=110).print(table)
    table = Table("atoms", "E + F, ms", "least", "most", "ms an atom", "angles", "peak memory")
    for row in large:
        milliseconds = [f"{1e3 * row[name]:.2f}" for name in ("seconds", "least", "most")]
        each, peak = f"{1e3 * row['seconds'] / row['atoms']:.3f}", f"{row['peak_bytes'] / 1e9:.2f} GB"
        table.add_row(str(row["atoms"]), *milliseconds, each, str(row["angles"]), peak)
    Console(width=110).print(table)
    print(f"seconds grow as atoms^{exponents['seconds']:.2f}, angles as atoms^{exponents['angles']:.2f}")


if __name__ == "__main__":
    typer.run(main)
