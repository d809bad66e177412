"""Energies and forces of many structures at once, of any formulas and orders of atoms, and how far to trust them.

# E members, M structures, L fidelity levels, A atoms in all of them, S species, n atoms of one structure
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from ase import Atoms
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import composition
from pykinml_func.errors import DataError
from pykinml_func.inference.checks import checked_species_of_all
from pykinml_func.inference.low_level import LowLevel, check_low_level, low_level_results
from pykinml_func.inference.uncertainty import scales_of, spread_numbers
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.domain import structure_distances
from pykinml_func.potential.ensemble import as_params, stack_members
from pykinml_func.potential.features import KnownAEVs
from pykinml_func.potential.self_energies import add_self_energies
from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.model_file import load_ensemble
from pykinml_func.training.step import build_predict_step
from pykinml_func.types import Batch, Domain, Ensemble, Params, atom_rows

_BATCH_ATOMS = 512
"""Atoms of a default batch on a CPU: what its caches hold, and enough to share between threads."""

_EAGER_BATCHES = 10
"""Batches of one shape after which more are likely, so that the step is recorded."""

_BATCH_ANGLES = 400_000
"""Angles of a default batch where AEVs are computed by torch, whose intermediate values take some 4 kB each."""


class Prediction(NamedTuple):
    """What a model, or the members of an ensemble, say of one structure."""

    fidelities: tuple[int, ...]
    """(L,) the model's levels, lowest first"""
    is_difference: bool
    """whether energies and forces are the difference to a low level that was not given (delta learning)"""
    level_energies: np.ndarray
    """(L,) eV at each level of the model, lowest first, self energies included: the mean of the members"""
    level_forces: np.ndarray | None
    """(L,n,3) eV/Å, in the order of the structure's atoms; None where they were not asked for"""
    member_energies: np.ndarray
    """(E,L) eV, of each member"""
    member_forces: np.ndarray | None
    """(E,L,n,3) eV/Å"""
    energy_std: float | None = None
    """eV, the members' standard deviation at the highest level, calibrated where the model has that; None for one
    member
    """
    forces_std: np.ndarray | None = None
    """(n,3) eV/Å, the same of forces"""
    spread: float = math.nan
    """`energy_std` over the root of the number of atoms, over the largest of the validation structures; NaN where that
    is not known
    """
    distance: float = math.nan
    """of the atom whose surroundings are least like the training set's, 1 for the farthest there; NaN where unknown"""

    @property
    def energy(self) -> float:
        """eV, at the highest level."""
        return float(self.level_energies[-1])

    @property
    def forces(self) -> np.ndarray | None:
        """(n,3) eV/Å, at the highest level; None where they were not asked for."""
        return None if self.level_forces is None else self.level_forces[-1]

    @property
    def extrapolation(self) -> float:
        """The larger of `spread` and `distance`; NaN where neither is known."""
        return float(np.fmax(self.spread, self.distance))

    @property
    def is_extrapolated(self) -> bool:
        """Whether the structure lies beyond the data that the model was trained on; False where that is not known."""
        return self.extrapolation > 1


class _Found(NamedTuple):
    """What the members gave, atoms in the order of the images."""

    energies: np.ndarray
    """(M,E,L) eV"""
    forces: np.ndarray | None
    """(A,E,L,3) eV/Å"""
    distances: np.ndarray
    """(M,), NaN where not known"""


class Predictor:
    """A model, or an ensemble of several, that evaluates structures in batches."""

    def __init__(self, model: Ensemble | ModelConfig, params: Params | None = None) -> None:
        """model: what `load_ensemble` returns; or the first of what `load_model` returns, with params the second.

        The networks' precision and device are those of the batches. Raises TypeError for one without the other.
        """
        if isinstance(model, ModelConfig) == (params is None):
            raise TypeError("Predictor takes an Ensemble, or a ModelConfig and Params")
        whole: Any = model if params is None else Ensemble(model, stack_members([params]))  # type: ignore[arg-type]
        self.model_config: ModelConfig = whole.model_config
        self.ensemble = Ensemble(whole.model_config, *tree_map_only(Tensor, Tensor.detach, tuple(whole[1:])))
        self._params = as_params(self.ensemble.members)
        self._steps = {
            forces: RecordedStep(_build_step(self.ensemble, forces), eager_calls=_EAGER_BATCHES)
            for forces in (False, True)
        }

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """The predictor of a model file, of one model or several. Raises ModelError for a file that is none."""
        return cls(load_ensemble(path, device))

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
        found = self._evaluate(source, order, self._chunks(counts, batch_size), forces)
        self_energies = self.ensemble.members.self_energies.cpu().flatten(0, 1)
        less = torch.from_numpy(found.energies).flatten(1)
        totals = add_self_energies(self_energies, torch.from_numpy(counts), less).numpy().reshape(found.energies.shape)
        if low is not None:
            totals += low[0][:, None, None]
            if found.forces is not None:
                found.forces[:] += np.concatenate([force for force in low[1] if force is not None])[:, None, None]
        is_difference = self.model_config.baseline is not None and low_level is None
        return self._predictions(found._replace(energies=totals), source.offsets, is_difference)

    def _predictions(self, found: _Found, offsets: np.ndarray, is_difference: bool) -> list[Prediction]:
        """offsets: (M+1,)."""
        scales, several = scales_of(self.ensemble.calibration), self.ensemble.n_members > 1
        unknown: list[Any] = [None] * len(found.energies)
        energies, energy_stds, spreads = found.energies[:, 0], unknown, [math.nan] * len(unknown)
        if several:
            energies = found.energies.mean(axis=1)
            stds = scales.energy * found.energies[:, :, -1].std(axis=1, ddof=1)
            energy_stds, spreads = stds.tolist(), spread_numbers(scales, stds, np.diff(offsets)).tolist()
        forces, of_members, force_stds = unknown, unknown, unknown
        if found.forces is not None:
            mean = found.forces.mean(axis=1) if several else found.forces[:, 0]
            ends = offsets[1:-1]
            forces = [part.swapaxes(0, 1) for part in np.split(mean, ends)]
            of_members = [part.transpose(1, 2, 0, 3) for part in np.split(found.forces, ends)]
            if several:
                force_stds = np.split(scales.force * found.forces[:, :, -1].std(axis=1, ddof=1), ends)
        of_structures = (energies, forces, found.energies, of_members, energy_stds, force_stds, spreads)
        kind = self.model_config.fidelities, is_difference
        rows = zip(*of_structures, found.distances.tolist(), strict=True)
        return [Prediction(*kind, *row) for row in rows]

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
        if self.ensemble.members.self_energies.device.type == "cpu" and aev_kernel.available():
            return _cut(order, sizes, _BATCH_ATOMS)
        return _cut(order, np.maximum(sizes * (sizes - 1) * (sizes - 2) // 2, 1), _BATCH_ANGLES)

    def _evaluate(self, source: Source, order: np.ndarray, chunks: Iterator[np.ndarray], forces: bool) -> _Found:
        """Energies less self energies, and forces where they are wanted. order: of `_source`."""
        step, weight = self._steps[forces], self._params.networks[0].weights[0]
        shape = self.ensemble.n_members, self.model_config.n_levels
        energies, distances = np.empty((len(source.energies), *shape)), np.full(len(source.energies), np.nan)
        by_atom = np.empty((len(source.positions), *shape, 3)) if forces else None
        for chunk in chunks:
            packer = Packer(source, chunk, len(chunk), weight.dtype, weight.device)
            found, of_atoms, distance = step(self._params, self.ensemble.domain, packer.pack(chunk))
            energies[chunk] = found.movedim(0, 1).cpu().numpy()
            if by_atom is not None:
                rows = order[atom_rows(source.offsets, chunk)]
                by_atom[rows] = packer.unpack(chunk, of_atoms.movedim(0, 2))
            if distance is not None:
                distances[chunk] = distance.cpu().numpy()
        return _Found(energies, by_atom, distances)


_Step = Callable[[Params, Domain | None, Batch], tuple[Tensor | None, ...]]


def _build_step(ensemble: Ensemble, forces: bool) -> _Step:
    """Energies (E,M,L), forces (E,S,N,L,3) where they are wanted, and distances (M,) where there is a domain.

    The parameters of an ensemble of one have no axis for members.
    """
    config, n_members = ensemble.model_config, ensemble.n_members
    predict = build_predict_step(config, forces, n_members)

    def step(params: Params, domain: Domain | None, batch: Batch) -> tuple[Tensor | None, ...]:
        distances = None
        if domain is not None:
            known = KnownAEVs(*batch.features.aevs_and_pullback(config.aev))
            batch = batch._replace(features=known)
            distances = structure_distances(domain, known.aevs, batch.structure_index, len(batch.energies))
        found = predict(params, batch)
        if n_members == 1:
            found = tuple(each.unsqueeze(0) for each in found)
        return found[0], found[1] if forces else None, distances

    return step


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
