"""Energies and forces of many structures at once, of any formulas and orders of atoms; files in, files out.

# M structures, L fidelity levels, A atoms in all of them, S species, n atoms of one structure
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import composition
from pykinml_func.errors import DataError
from pykinml_func.files import write_atomically
from pykinml_func.inference.checks import checked_species_of_all
from pykinml_func.inference.low_level import LowLevel, check_low_level, low_level_results
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.self_energies import add_self_energies
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.model_file import load_model
from pykinml_func.training.step import build_predict_step
from pykinml_func.types import Params, atom_rows

_BATCH_ATOMS = 512
"""Atoms of a default batch on a CPU: what its caches hold, and enough to share between threads."""

_EAGER_BATCHES = 10
"""Batches of one shape after which more are likely, so that the step is recorded."""

_BATCH_ANGLES = 400_000
"""Angles of a default batch where AEVs are computed by torch, whose intermediate values take some 4 kB each."""


class Prediction(NamedTuple):
    """What a model says of one structure."""

    fidelities: tuple[int, ...]
    """(L,) the model's levels, lowest first"""
    is_difference: bool
    """whether energies and forces are the difference to a low level that was not given (delta learning)"""
    level_energies: np.ndarray
    """(L,) eV at each level of the model, lowest first, self energies included"""
    level_forces: np.ndarray | None
    """(L,n,3) eV/Å, in the order of the structure's atoms; None where they were not asked for"""

    @property
    def energy(self) -> float:
        """eV, at the highest level."""
        return float(self.level_energies[-1])

    @property
    def forces(self) -> np.ndarray | None:
        """(n,3) eV/Å, at the highest level; None where they were not asked for."""
        return None if self.level_forces is None else self.level_forces[-1]


class Predictor:
    """A model that evaluates structures in batches."""

    def __init__(self, model_config: ModelConfig, params: Params) -> None:
        """The networks' precision and device are those of the batches."""
        self.model_config = model_config
        self.params: Params = tree_map(torch.Tensor.detach, params)
        self._steps = {
            forces: RecordedStep(build_predict_step(model_config, forces), eager_calls=_EAGER_BATCHES)
            for forces in (False, True)
        }

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """The predictor of a model file. Raises ModelError for a file that is none."""
        return cls(*load_model(path, device))

    def predict(
        self,
        images: Iterable[Atoms],
        forces: bool = True,
        batch_size: int | None = None,
        low_level: LowLevel | None = None,
    ) -> list[Prediction]:
        """Energies, and forces where `forces` is set, in the order of `images`.

        batch_size: structures evaluated at a time; default: as many as suit the device and its memory. low_level: what
        a model of delta learning is added to; without it the model predicts the difference. Raises ModelError for a
        structure that is periodic or has an element that the model does not know, and for a low level that the model
        cannot use; DataError for a structure that has no atoms, positions that are not finite, two atoms in one place,
        or no results of the low level, and for a batch size below 1.
        """
        check_low_level(self.model_config, low_level)
        if batch_size is not None and batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        images = list(images)
        if not images:
            return []
        source, order = self._source(images)
        low = None if low_level is None else low_level_results(images, low_level, forces)
        counts = composition(source.species, source.offsets, source.n_species)
        energies, sorted_forces = self._evaluate(source, self._chunks(counts, batch_size), forces)
        self_energies = self.params.self_energies.cpu()
        totals = add_self_energies(self_energies, torch.from_numpy(counts), torch.from_numpy(energies)).numpy()
        by_structure: list[np.ndarray | None] = [None] * len(images)
        if sorted_forces is not None:
            by_atom = np.empty_like(sorted_forces)
            by_atom[order] = sorted_forces
            by_structure = [part.swapaxes(0, 1) for part in np.split(by_atom, source.offsets[1:-1])]
        if low is not None:
            totals = totals + low[0][:, None]
            by_structure = [
                None if own is None or added is None else own + added
                for own, added in zip(by_structure, low[1], strict=True)
            ]
        kind = self.model_config.fidelities, self.model_config.baseline is not None and low_level is None
        return [Prediction(*kind, total, force) for total, force in zip(totals, by_structure, strict=True)]

    def _source(self, images: Sequence[Atoms]) -> tuple[Source, np.ndarray]:
        """The images with the atoms of each sorted by species, and the place (A,) in the images of each sorted atom.

        Sorted, all structures of a formula share one set of neighbour tables.
        """
        elements = self.model_config.aev.elements
        species = checked_species_of_all(elements, images)
        sizes = [len(atoms) for atoms in images]
        order = np.lexsort((species, np.repeat(np.arange(len(images)), sizes)))
        positions = np.concatenate([atoms.positions for atoms in images])
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        source = Source(species[order], positions[order], offsets, len(elements), np.zeros((len(images), 1)))
        aev = self.model_config.aev
        return source._replace(cutoffs=(aev.radial_cutoff, aev.angular_cutoff)), order

    def _chunks(self, counts: np.ndarray, batch_size: int | None) -> Iterator[np.ndarray]:
        """The structures of each batch: like with like, since a batch is padded to its largest. counts: (M,S)."""
        sizes = counts.sum(axis=1)
        order = np.lexsort((*counts.T, sizes))
        if batch_size is not None:
            return (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        if self.params.self_energies.device.type == "cpu" and aev_kernel.available():
            return _cut(order, sizes, _BATCH_ATOMS)
        return _cut(order, np.maximum(sizes * (sizes - 1) * (sizes - 2) // 2, 1), _BATCH_ANGLES)

    def _evaluate(
        self, source: Source, chunks: Iterator[np.ndarray], forces: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Energies (M,L) less self energies, and forces (A,L,3) of the source's atoms where they are wanted."""
        step, n_levels = self._steps[forces], self.model_config.n_levels
        weight = self.params.networks[0].weights[0]
        energies = np.empty((len(source.energies), n_levels))
        by_atom = np.empty((len(source.positions), n_levels, 3)) if forces else None
        for chunk in chunks:
            packer = Packer(source, chunk, len(chunk), weight.dtype, weight.device)
            batch = packer.pack(chunk)
            found = step(self.params, batch)
            energies[chunk] = found[0].cpu().numpy()
            if by_atom is not None:
                by_atom[atom_rows(source.offsets, chunk)] = packer.unpack(chunk, found[1])
        return energies, by_atom


def _cut(order: np.ndarray, costs: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Batches that cost `most` at most, or hold one structure. costs: (M,), ascending along `order`, where the last of
    a batch sets the cost of all.
    """
    start = 0
    while start < len(order):
        chunk = order[start : start + max(1, most // int(costs[order[start]]))]
        fits = costs[chunk] * np.arange(1, len(chunk) + 1) <= most
        chunk = chunk[: max(1, int(fits.sum()))]
        yield chunk
        start += len(chunk)


def check_output(path: Path) -> None:
    """Raises DataError for a name that ASE, which goes by names, would read as another format than extended XYZ."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

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

    `ase.io.read(path, index=":")[m].get_potential_energy()` is then that of image m. Levels below the highest are in
    `info["energy_0"]` and `arrays["forces_0"]`, named by level; a difference is in `energy_difference` and
    `forces_difference`. Raises DataError where `path` cannot be written, or has the suffix of another format.
    """
    import ase.io

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
    named = [f"_{level}" for level in prediction.fidelities[:-1]]
    if prediction.is_difference:
        named.append("_difference")
    else:
        frame.calc = SinglePointCalculator(frame, energy=prediction.energy, forces=prediction.forces)
    for column, suffix in enumerate(named):
        frame.info[f"energy{suffix}"] = float(prediction.level_energies[column])
        frame.arrays.pop(f"forces{suffix}", None)  # of another energy
        if prediction.level_forces is not None:
            frame.arrays[f"forces{suffix}"] = prediction.level_forces[column]
    return frame
