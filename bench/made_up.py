"""Databases of any size that are like PyKinML's C5H5: its structures, shaken; labels from a model trained on them.

# M structures of the example data, K of a chunk, n atoms of each
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms

from bench.peers.problem import read, training_settings
from pykinml_func import Predictor
from pykinml_func.config.build import build_config
from pykinml_func.data.formats.database import write_database
from pykinml_func.data.geometry import squared_distances
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import SilentReporter
from pykinml_func.types import Structures

DISPLACEMENT = 0.03
"""Å, standard deviation of each coordinate: of the size of zero-point motion"""
CLOSEST = 0.9
"""Å; the example data have no atoms nearer than 1.03"""
_CHUNK = 10_000
"""Structures that are in memory at a time."""
_LABELS_EPOCHS = 20


def shaken(positions: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """(count,n,3) Å: random ones of positions (M,n,3), every atom displaced, and none too near another."""
    found = np.empty((count, *positions.shape[1:]))
    wrong = np.arange(count)
    while len(wrong):
        chosen = positions[generator.integers(len(positions), size=len(wrong))]
        found[wrong] = chosen + generator.normal(0, DISPLACEMENT, chosen.shape)
        closest = squared_distances(found[wrong]).min(axis=(1, 2))
        wrong = wrong[closest < CLOSEST**2]
    return found


def labelling_model(data: Path, scratch: Path) -> Path:
    """A model of energies and forces of the example data, trained for a few epochs if it is not there yet."""
    path = scratch / "labels" / "model.safetensors"
    if not path.exists():
        own = {"epochs": _LABELS_EPOCHS, "prepared": scratch / "labels_prepared", "output": path.parent}
        settings = training_settings(data.resolve()) | own | {"forces": True, "force_path": "positions"}
        fit(build_config(settings), SilentReporter(), overwrite=True)
    return path


def make_database(path: Path, n_structures: int, data: Path, model: Path, say: Callable[[str], None]) -> None:
    """Write a database of so many structures, unless it is there. model: what labels them."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    real = read(data)
    numbers = real.numbers[: real.sizes[0]]
    arrays = {name: path.with_name(f".{name}.npy") for name in ("positions", "forces")}
    shape = (n_structures, len(numbers), 3)
    made = {name: np.lib.format.open_memmap(file, "w+", np.float64, shape) for name, file in arrays.items()}
    energies, predictor = np.empty(n_structures), Predictor.load(model)
    for start in range(0, n_structures, _CHUNK):
        part = slice(start, min(start + _CHUNK, n_structures))
        generator = np.random.default_rng([0, start])
        made["positions"][part] = shaken(real.positions.reshape(-1, *shape[1:]), part.stop - start, generator)
        found = predictor.predict([Atoms(numbers, each) for each in made["positions"][part]])
        energies[part] = [each.energy for each in found]
        made["forces"][part] = [each.forces for each in found]
        say(f"{path}: {part.stop} of {n_structures} structures labelled")
    write_database(path, _structures(numbers, made["positions"], energies, made["forces"]), {1: "a model's"})
    for file in arrays.values():
        file.unlink()


def _structures(numbers: np.ndarray, positions: np.ndarray, energies: np.ndarray, forces: np.ndarray) -> Structures:
    """positions, forces: (K,n,3); energies: (K,)."""
    count = len(energies)
    return Structures(
        np.tile(numbers, count),
        positions.reshape(-1, 3),
        np.arange(count + 1) * len(numbers),
        np.array([1]),
        energies[:, None],
        forces.reshape(-1, 1, 3),
        np.full(count, ""),
        np.full(count, "made up"),
        np.full(count, np.nan),
    )
