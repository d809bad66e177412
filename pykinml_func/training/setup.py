"""From settings to what the epochs need: data, split, self energies, loaders.

# M structures, L fidelity levels, S species
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import psutil
import torch

from pykinml_func.config import ModelConfig, RunConfig, TrainConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import composition, species_of
from pykinml_func.data.featurize import jacobian_shape
from pykinml_func.data.groups import structure_groups
from pykinml_func.data.labels import complete_structures, has_forces, training_labels
from pykinml_func.data.loader import Loader, MemberLoader
from pykinml_func.data.members import member_structures
from pykinml_func.data.prepared import Featurizing, PreparedSet, open_prepared
from pykinml_func.data.splits import Split, make_split, make_split_from_marks
from pykinml_func.errors import ConfigError, ElementError
from pykinml_func.potential import aev_kernel
from pykinml_func.potential.ensemble import n_members_of
from pykinml_func.potential.self_energies import SelfEnergyFit, fit_level_self_energies, subtract_self_energies
from pykinml_func.training.ranks import Ranks
from pykinml_func.training.start import Start, read_start
from pykinml_func.types import Structures

_JACOBIAN_SHARE = 0.25
"""Part of the free memory that Jacobians may fill before `auto` takes the positions path."""


class RunData(NamedTuple):
    """What a run trains on."""

    labels: Structures
    """with the labels of the levels that are predicted"""
    left_out: int
    """structures that lack a label that is needed"""
    split: Split
    source: Source
    """without features"""
    self_energies: SelfEnergyFit
    refitted: bool
    """False where the self energies are those of the model that training starts from"""


def open_run(
    config: RunConfig, featurizing: Featurizing, start: Start | None = None
) -> tuple[PreparedSet, RunConfig, Start | None]:
    """The prepared set, the config with all that follows from the data filled in, and the model to start from.

    start: of a run that is resumed; default: what the settings say. Raises ConfigError, DataError or ModelError for
    what cannot be used.
    """
    data, training = config.data, config.training
    if start is None and training.start_from is not None:
        start = read_start(config, training.start_from)
    model = config.model if start is None else start.model_config
    try:
        prepared = open_prepared(data, model.aev, training.precision, featurizing=featurizing)
    except ElementError as error:
        if start is None:
            raise
        raise ConfigError(
            f"{training.start_from} cannot learn new elements: {str(error).rpartition('; ')[0]}; leave these "
            "structures out, or train a new model"
        ) from None
    data = prepared.data
    model = model.model_copy(update={"aev": prepared.aev, "fidelities": data.fidelities, "baseline": data.baseline})
    training = _at_precision(training, prepared)
    if start is not None and n_members_of(start.params) > 1:
        training = _of_members(training, n_members_of(start.params))
    if training.forces:
        training = training.model_copy(update={"force_path": _force_path(training, prepared)})
    return prepared, config.model_copy(update={"data": data, "model": model, "training": training}), start


def _at_precision(training: TrainConfig, prepared: PreparedSet) -> TrainConfig:
    """With the precision of a pre-saved set. Raises ConfigError where another one was given."""
    if training.precision != prepared.precision and "precision" in training.model_fields_set:
        raise ConfigError(
            f"precision must be that of the prepared set, got {training.precision}, and {prepared.path} has "
            f"{prepared.precision}; leave precision out, or prepare such a set"
        )
    return training.model_copy(update={"precision": prepared.precision})


def _of_members(training: TrainConfig, n_members: int) -> TrainConfig:
    """With as many members as are started from. Raises ConfigError where fsdp was asked for."""
    if training.fsdp:
        raise ConfigError(
            f"fsdp cuts one model among the ranks, got {n_members} members in {training.start_from}; leave fsdp out"
        )
    return training.model_copy(update={"ensemble": n_members})


def _force_path(training: TrainConfig, prepared: PreparedSet) -> str:
    if training.force_path != "auto":
        return training.force_path
    if prepared.backend == "native" and training.device == "cpu" and aev_kernel.available():
        return "positions"  # sooner computed than Jacobians are read
    entries = math.prod(jacobian_shape(prepared.aev, prepared.structures.sizes))
    needed = entries * np.dtype(training.precision).itemsize
    return "jacobian" if needed < _JACOBIAN_SHARE * psutil.virtual_memory().available else "positions"


def run_data(config: RunConfig, prepared: PreparedSet, start: Start | None) -> RunData:
    """Labels, split and self energies of a run.

    Raises ConfigError or DataError for data that cannot be trained on.
    """
    labels = training_labels(config.data, prepared.structures)
    marks = None if prepared.marks is None else np.array([prepared.marks[str(name)] for name in labels.ids])
    members = np.arange(labels.n_structures) if marks is None else np.flatnonzero(marks)
    forces, with_forces = (labels.forces, has_forces(labels)) if config.training.forces else (None, None)
    kept = complete_structures(config.data, labels, with_forces, members)
    split = _split(config, labels, kept, marks)
    _check_split(labels, split)
    elements = config.model.aev.elements
    species = species_of(elements, labels)
    counts = torch.from_numpy(composition(species, labels.offsets, len(elements)))
    refitted = start is None or _levels(start.model_config) != _levels(config.model)
    if refitted:
        _check_elements(config, counts, labels, split)
    _check_members(config.training, elements, counts.numpy(), labels, split.train)
    energies = torch.from_numpy(labels.energies)
    fit = _self_energies(config, counts[split.train], energies[split.train], None if refitted else start)
    targets = subtract_self_energies(fit.self_energies, counts, energies).numpy()
    source = Source(species, labels.positions, labels.offsets, len(elements), targets, forces, with_forces)
    return RunData(labels, len(members) - len(kept), split, source, fit, refitted)


def _split(config: RunConfig, labels: Structures, kept: np.ndarray, marks: np.ndarray | None) -> Split:
    """The split of the structures at `kept` (k,), each part with its share of those that have the highest level's
    energy, as nearly as whole groups allow where there are groups. marks: (M,) of split files.
    """
    data, seed = config.data, config.training.seeds[0]
    strata = np.isfinite(labels.energies[kept, -1])
    groups = None if data.split_by is None else structure_groups(data.split_by, labels, kept)
    if marks is None:
        split = make_split(data.split, strata, seed, groups)
    else:
        split = make_split_from_marks(data.split, marks[kept], strata, seed, groups)
    return Split(*(kept[part] for part in split))


def _check_split(labels: Structures, split: Split) -> None:
    """Every level must be trained on, and the highest validated on."""
    highest = np.isfinite(labels.energies[:, -1])
    if len(split.train) == 0 or not highest[split.valid].any():
        raise ConfigError(
            "split must leave structures to train on, and some with energies at the highest level to validate on (the "
            f"learning rate and the best model go by those), got {len(split.train)} and "
            f"{int(highest[split.valid].sum())} of {labels.n_structures}"
        )
    for column, level in enumerate(labels.levels):
        if not np.isfinite(labels.energies[split.train, column]).any():
            raise ConfigError(
                f"every level must have energies to train on, and level {level} has none among {len(split.train)} "
                "training structures; train on more, or leave the level out"
            )


def _check_elements(config: RunConfig, counts: torch.Tensor, labels: Structures, split: Split) -> None:
    """Every element must be trained at every level. counts: (M,S)."""
    elements = config.model.aev.elements
    for column, level in enumerate(labels.levels):
        there = np.isfinite(labels.energies[split.train, column])
        trained = (counts[split.train][torch.from_numpy(there)] > 0).any(dim=0).tolist()
        absent = [symbol for symbol, found in zip(elements, trained, strict=True) if not found]
        if absent:
            kept = [symbol for symbol in elements if symbol not in absent]
            way = f"leave it out: --elements {','.join(kept)}"
            if config.training.start_from is not None:
                way = "start from a model without it: self energies are fitted anew, since the levels are others"
            more = "train on more structures" if config.data.split_by is None else "draw other groups with another seed"
            raise ConfigError(
                f"every element must occur in a training structure of level {level}, and {', '.join(absent)} occurs in "
                f"none; {more}, or {way}"
            )


def _check_members(
    training: TrainConfig, elements: Sequence[str], counts: np.ndarray, labels: Structures, train: np.ndarray
) -> None:
    """Every member must be trained to what all structures together are: each level of each element. counts: (M,S)."""
    if training.ensemble == 1 or training.ensemble_data not in ("bootstrap", "folds"):
        return
    present = np.isfinite(labels.energies)[:, :, None] & (counts > 0)[:, None]
    everywhere = present[train].any(axis=0)
    samples = member_structures(train, training.ensemble_data, training.member_seeds)
    for place, own in enumerate(samples):
        for column, kind in np.argwhere(everywhere & ~present[own].any(axis=0)):
            raise ConfigError(
                f"every member must be trained on every element at every level, and the sample of member {place} has "
                f"no energies of {elements[kind]} at level {labels.levels[column]} (ensemble_data = "
                f"{training.ensemble_data}); train on more structures, draw others with another seed, or leave "
                "ensemble_data out"
            )


def _self_energies(
    config: RunConfig, counts: torch.Tensor, energies: torch.Tensor, start: Start | None
) -> SelfEnergyFit:
    """SAEs (L,S) of the run: those of `start` if there is one. counts: (m,S), energies: (m,L) of training."""
    n_species, data = counts.shape[1], config.data
    if start is not None:
        refused = "fit_self_energies" in data.model_fields_set and not data.fit_self_energies
        if refused and start.self_energies.any():
            raise ConfigError(
                f"fit_self_energies is off, and {config.training.start_from} has self energies, which training from it "
                "keeps; leave fit_self_energies out, or train a new model"
            )
        return SelfEnergyFit(start.self_energies, n_species)
    if not data.fit_self_energies:
        zeros = torch.zeros(energies.shape[1], n_species, dtype=torch.float64)
        return SelfEnergyFit(zeros, n_species)
    return fit_level_self_energies(counts, energies)


def _levels(model: ModelConfig) -> tuple[tuple[int, ...], int | None]:
    return model.fidelities, model.baseline


def make_loaders(config: RunConfig, data: RunData, prepared: PreparedSet, ranks: Ranks) -> dict[str, Loader]:
    """This rank's share of the training, validation and test structures, with the features that the run needs."""
    training, dtype = config.training, getattr(torch, config.training.precision)
    source = _with_features(config, data, prepared)
    sizes = (training.batch_size, training.valid_batch_size, training.test_batch_size)
    share = ranks.rank, ranks.size
    packers = [
        Packer(source, part, size, dtype, ranks.device, share) for part, size in zip(data.split, sizes, strict=True)
    ]
    return {part: Loader(packer, None) for part, packer in zip(Split._fields, packers, strict=True)}


def make_training_loader(config: RunConfig, train: Loader) -> Loader | MemberLoader:
    """The batches that are trained on, which may hold each member's own. train: of all that there is."""
    training, packer = config.training, train.packer
    seeds = training.member_seeds if training.order == "shuffled" else (None,) * training.ensemble
    if training.ensemble == 1 or training.ensemble_data == "shared":
        return Loader(packer, seeds[0])
    members = member_structures(packer.members, training.ensemble_data, training.member_seeds)
    return MemberLoader(packer.of(np.concatenate(members), len(members[0])), members, seeds)


def _with_features(config: RunConfig, data: RunData, prepared: PreparedSet) -> Source:
    """The source with what the force path needs of the prepared set."""
    if not config.training.forces:
        return data.source._replace(aevs=prepared.aevs)
    if config.training.force_path == "positions":
        return data.source
    return data.source._replace(aevs=prepared.aevs, jacobians=prepared.jacobians)
