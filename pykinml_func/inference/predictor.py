"""Energies and forces of many structures at once, of any formulas and orders of atoms; files in, files out.

# M structures, A atoms in all of them, S species, n atoms of one structure
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Self

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.database import read_databases
from pykinml_func.data.elements import composition
from pykinml_func.errors import DataError
from pykinml_func.files import write_atomically
from pykinml_func.inference.checks import checked_species
from pykinml_func.potential.self_energies import add_self_energies
from pykinml_func.training.checkpoint import load_model
from pykinml_func.training.step import build_predict_step
from pykinml_func.types import Params, atom_rows

_SOURCE = "pykinml_source"
"""The key of `Atoms.info` that remembers where a structure was read."""

_BATCH_ANGLES = {"cpu": 8_000, "cuda": 400_000}
"""Angles of a default batch, by kind of device. On a CPU, what its caches hold: 22 structures of ten atoms, some 30 MB
of intermediate values in all. An accelerator wants more at a time, some 1.5 GB."""


class Prediction(NamedTuple):
    """What a model says of one structure."""

    energy: float
    """eV, self energies included"""
    forces: np.ndarray | None
    """(n,3) eV/Å, in the order of the structure's atoms; None where they were not asked for"""


class Predictor:
    """A model that evaluates structures in batches."""

    def __init__(self, model_config: ModelConfig, params: Params) -> None:
        """The networks' precision and device are those of the batches."""
        self.model_config = model_config
        self.params: Params = tree_map(torch.Tensor.detach, params)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """The predictor of a model file. Raises ModelError for a file that is none."""
        return cls(*load_model(path, device))

    def predict(self, images: Iterable[Atoms], forces: bool = True, batch_size: int | None = None) -> list[Prediction]:
        """Energies, and forces where `forces` is set, in the order of `images`.

        batch_size: structures evaluated at a time; default: as many as suit the device and its memory. Raises
        ModelError for a structure that is periodic or has an element that the model does not know, DataError for one
        that has no atoms, positions that are not finite or two atoms in one place, and for a batch size below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        images = list(images)
        if not images:
            return []
        source, order = self._source(images)
        counts = composition(source.species, source.offsets, source.n_species)
        chunks = _chunks(
            counts, batch_size, _BATCH_ANGLES.get(self.params.self_energies.device.type, _BATCH_ANGLES["cpu"])
        )
        energies, sorted_forces = self._evaluate(source, chunks, forces)
        self_energies = self.params.self_energies.cpu()
        totals = add_self_energies(self_energies, torch.from_numpy(counts), torch.from_numpy(energies)).tolist()
        if sorted_forces is None:
            return [Prediction(total, None) for total in totals]
        by_atom = np.empty_like(sorted_forces)
        by_atom[order] = sorted_forces
        split = np.split(by_atom, source.offsets[1:-1])
        return [Prediction(total, force) for total, force in zip(totals, split, strict=True)]

    def _source(self, images: Sequence[Atoms]) -> tuple[Source, np.ndarray]:
        """The images with the atoms of each sorted by species, and the place (A,) in the images of each sorted atom.

        Sorted, all structures of a formula share one set of neighbour tables.
        """
        elements = self.model_config.aev.elements
        species = np.concatenate([checked_species(elements, atoms, _label(m, atoms)) for m, atoms in enumerate(images)])
        sizes = [len(atoms) for atoms in images]
        order = np.lexsort((species, np.repeat(np.arange(len(images)), sizes)))
        positions = np.concatenate([atoms.positions for atoms in images])
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return Source(species[order], positions[order], offsets, len(elements), np.zeros(len(images))), order

    def _evaluate(
        self, source: Source, chunks: Iterator[np.ndarray], forces: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Energies (M,) less self energies, and forces (A,3) of the source's atoms where they are wanted."""
        step = build_predict_step(self.model_config, forces)
        weight = self.params.networks.weights[0]
        energies, by_atom = np.empty(len(source.energies)), np.empty_like(source.positions) if forces else None
        for chunk in chunks:
            packer = Packer(source, chunk, len(chunk), weight.dtype, weight.device)
            batch = packer.pack(chunk)
            found = step(self.params, batch)
            energies[chunk] = found[0].cpu().numpy()
            if by_atom is not None:
                by_atom[atom_rows(source.offsets, chunk)] = packer.unpack(chunk, found[1])
        return energies, by_atom


def _chunks(counts: np.ndarray, batch_size: int | None, most_angles: int) -> Iterator[np.ndarray]:
    """The structures of each batch: like with like, since a batch is padded to its largest. counts: (M,S)."""
    sizes = counts.sum(axis=1)
    order = np.lexsort((*counts.T, sizes))
    angles = np.maximum(sizes * (sizes - 1) * (sizes - 2) // 2, 1)
    start = 0
    while start < len(order):
        size = batch_size or max(1, most_angles // int(angles[order[start]]))
        chunk = order[start : start + size]
        if batch_size is None:  # sizes ascend, so the last of a batch sets the size of all; one always fits
            fits = angles[chunk] * np.arange(1, len(chunk) + 1) <= most_angles
            chunk = chunk[: max(1, int(fits.sum()))]
        yield chunk
        start += len(chunk)


def _label(position: int, atoms: Atoms) -> str:
    return f"{atoms.info.get(_SOURCE, f'images[{position}]')} ({atoms.get_chemical_formula()})"


def read_structures(paths: Iterable[str | Path]) -> list[Atoms]:
    """Every structure of files that are PyKinML databases or anything that ASE reads, in their order.

    Raises DataError for a file that is not there, is empty, or cannot be read.
    """
    return [atoms for path in paths for atoms in _read_file(Path(path))]


def _read_file(path: Path) -> list[Atoms]:
    if not path.exists():
        raise DataError(f"no structure file {path} (from {Path.cwd()}); give a file that ASE reads or a PyKinML .db")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} must hold at least one structure, got an empty file")
    return _read_pykinml(path) if _is_pykinml(path) else _read_ase(path)


def _read_ase(path: Path) -> list[Atoms]:
    try:
        images = list(ase.io.iread(path, index=":", do_not_split_by_at_sign=True))
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise DataError(
            f"{path} must be in a format that ASE reads (`ase info --formats` lists them, with their suffixes); "
            f"{type(error).__name__}: {error}"
        ) from error
    if not images:
        raise DataError(f"{path} must hold at least one structure, got none")
    for index, atoms in enumerate(images):
        atoms.info[_SOURCE] = f"{path}@{index}"
    return images


def _is_pykinml(path: Path) -> bool:
    """Whether `path` is a SQLite file with PyKinML's tables; ASE's own databases, also .db, have others."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            return False
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.DatabaseError:
            return False
    return {"xyz", "energy"} <= tables


def _read_pykinml(path: Path) -> list[Atoms]:
    structures = read_databases([path], labels=False)
    atoms_of = zip(structures.offsets[:-1], structures.offsets[1:], structures.ids, strict=True)
    return [
        Atoms(structures.numbers[a:b], structures.positions[a:b], info={_SOURCE: f"{path}, {name}"})
        for a, b, name in atoms_of
    ]


def check_output(path: Path) -> None:
    """Raises DataError for a name that ASE, which goes by names, would read as another format than extended XYZ."""
    try:
        taken_for = filetype(path.name, read=False)
    except UnknownFileTypeError:
        return
    if taken_for != "extxyz" and taken_for in ioformats:
        raise DataError(
            f"output must be extended XYZ, got {path}, which ASE would read as {taken_for}; name it .extxyz or .xyz"
        )


def write_predictions(path: str | Path, images: Sequence[Atoms], predictions: Sequence[Prediction]) -> None:
    """Write extended XYZ, whole or not at all, whose energies (eV) and forces (eV/Å) are the predictions.

    `ase.io.read(path, index=":")[m].get_potential_energy()` is then that of image m. Raises DataError where `path`
    cannot be written, or has the suffix of another format.
    """
    path = Path(path)
    check_output(path)
    frames = [_frame(atoms, prediction) for atoms, prediction in zip(images, predictions, strict=True)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: ase.io.write(temporary, frames, format="extxyz"))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from None


def _frame(atoms: Atoms, prediction: Prediction) -> Atoms:
    frame = atoms.copy()
    frame.info.pop("energy", None)  # ASE refuses to write a value of the same name twice
    frame.arrays.pop("forces", None)
    frame.calc = SinglePointCalculator(frame, energy=prediction.energy, forces=prediction.forces)
    return frame
