"""Which structures of a pool are most worth labelling next: those that an ensemble is unsure of, and that differ.

# M structures of the pool, F features of a structure, S species, N atoms a species (padded), K directions of AEV space
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import composition
from pykinml_func.errors import ConfigError, ModelError
from pykinml_func.inference.checks import checked_species_of_all
from pykinml_func.inference.predictor import Predictor
from pykinml_func.potential.domain import white_offsets
from pykinml_func.training.domain import fit_domain
from pykinml_func.types import Domain, Ensemble

_AT_A_TIME = 2048
"""Structures whose members' forces are held together: some tens of megabytes."""

_BATCH = 50

_SAME = 1e-3
"""Whitened distance below which two structures are copies, turned or renumbered: some 1e-5 Å."""

_LEAST_WEIGHT = 1e-30
"""(eV/Å)², of a structure of which the members agree, such as an atom: the last of choices, but one."""


def select(ensemble: Ensemble, images: Sequence[Atoms], number: int) -> np.ndarray:
    """The structures of a pool to label next, in the order of choice: (number,) indices into `images`, or fewer where
    fewer are distinct.

    By largest-cluster maximum-distance selection (Zaverkin et al., Digital Discovery 1, 605 (2022)): every structure
    belongs to the nearest that was chosen, and the next is the farthest of the cluster whose squared distances have the
    largest sum. Squared distances are between whitened AEVs, times the variance of the members' forces. So clusters
    are many where the ensemble is unsure or the pool is dense, and no two of the chosen are alike: of copies,
    turned or renumbered, one alone is. The same pool gives the same choice; memory is M F numbers.

    Raises ModelError for an ensemble of one, and what `Predictor.predict` raises; ConfigError for more structures than
    there are, or less than one.
    """
    if ensemble.n_members < 2:
        raise ModelError(
            "select needs an ensemble of two or more members, by whose spread it chooses, got one model; train one "
            "with --ensemble 8, or join several models with `pykinml combine`"
        )
    if not 1 <= number <= len(images):
        raise ConfigError(
            f"number must be from 1 to {len(images)}, the structures of the pool, got {number}; give --number less, "
            "or a larger pool"
        )
    source = _source(ensemble.model_config, images)
    return largest_clusters(_features(ensemble.model_config, source), force_variances(ensemble, images), number)


def force_variances(ensemble: Ensemble, images: Sequence[Atoms]) -> Tensor:
    """(M,) mean over a structure's force components of the members' variance, (eV/Å)²: how unsure they are of it."""
    predictor = Predictor(ensemble)
    parts = (images[start : start + _AT_A_TIME] for start in range(0, len(images), _AT_A_TIME))
    stds = [prediction.forces_std for part in parts for prediction in predictor.predict(part)]
    return torch.tensor([np.square(std).mean() for std in stds if std is not None], dtype=torch.float64)


def largest_clusters(features: Tensor, weights: Tensor, number: int) -> np.ndarray:
    """Largest-cluster maximum-distance selection, from the largest weight on, until what is left are copies.

    features: (M,F); weights: (M,) of squared distances. Returns (number,) indices, or fewer.
    """
    weights = weights.clamp(min=_LEAST_WEIGHT)
    chosen, owner = [int(weights.argmax())], torch.zeros(len(weights), dtype=torch.int64)
    nearest = weights * _squared_distances(features, chosen[0])
    while len(chosen) < number:
        cluster = torch.bincount(owner, nearest, minlength=len(chosen)).argmax()
        farthest = int(torch.where(owner == cluster, nearest, -1).argmax())
        if nearest[farthest] == 0:
            break
        distances = weights * _squared_distances(features, farthest)
        owner[distances < nearest] = len(chosen)
        nearest = torch.minimum(nearest, distances)
        chosen.append(farthest)
    return np.array(chosen)


def _squared_distances(features: Tensor, place: int) -> Tensor:
    """(M,) in float64, exactly zero for copies."""
    one = features[place].unsqueeze(0)
    distances = torch.cdist(features, one, compute_mode="donot_use_mm_for_euclid_dist").squeeze(1).double()
    return torch.where(distances < _SAME, 0.0, distances.square())


def _source(model_config: ModelConfig, images: Sequence[Atoms]) -> Source:
    aev = model_config.aev
    species = checked_species_of_all(aev.elements, images)
    positions = np.concatenate([atoms.positions for atoms in images])
    offsets = np.concatenate([[0], np.cumsum([len(atoms) for atoms in images])])
    no_labels, cutoffs = np.zeros((len(images), 1)), (aev.radial_cutoff, aev.angular_cutoff)
    return Source(species, positions, offsets, len(aev.elements), no_labels, cutoffs=cutoffs)


def _features(model_config: ModelConfig, source: Source) -> Tensor:
    """Sums over each element's atoms of what AEVs differ from that element's mean in the pool, whitened by the pool.

    Over the root of the number of atoms, as an energy's spread: large molecules are not farther apart. Then, so small
    that they only tell copies, the numbers of atoms of each element: sums may agree where the atoms of each are all
    alike. Returns (M,S K+S) float32.
    """
    packer = Packer(source, np.arange(len(source.energies)), _BATCH, torch.float64, torch.device("cpu"))
    domain = fit_domain(model_config, packer)
    found = []
    for batch in packer.batches(packer.members):
        aevs, _ = batch.features.aevs_and_pullback(model_config.aev)
        found.append(_summed(domain, aevs, batch.structure_index, len(batch.energies)))
    counts = torch.from_numpy(composition(source.species, source.offsets, source.n_species))
    sums = torch.cat(found)[: len(counts)]
    return torch.cat([sums / counts.sum(dim=1, keepdim=True).sqrt(), 10 * _SAME * counts], dim=1)


def _summed(domain: Domain, aevs: Tensor, structure_index: Tensor, n_structures: int) -> Tensor:
    """aevs: (S,N,D); structure_index: (S,N). Returns (M,S K)."""
    white = white_offsets(domain, aevs)
    place = structure_index.unsqueeze(2).expand_as(white)
    sums = white.new_zeros(len(white), n_structures + 1, white.shape[2]).scatter_add(1, place, white)
    return sums[:, :n_structures].movedim(0, 1).flatten(1)
