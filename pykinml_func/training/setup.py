"""From settings to what the epochs need: data, split, self energies, loaders, the networks to start from.

# M structures, L fidelity levels, S species
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig, RunConfig, TrainConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import composition, species_of
from pykinml_func.data.featurize import jacobian_offsets
from pykinml_func.data.labels import complete_structures, training_labels
from pykinml_func.data.loader import Loader
from pykinml_func.data.prepared import PreparedSet, open_prepared
from pykinml_func.data.splits import Split, make_split, make_split_from_marks
from pykinml_func.errors import ConfigError, ElementError
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.self_energies import SelfEnergyFit, fit_level_self_energies, subtract_self_energies
from pykinml_func.training.checkpoint import load_model
from pykinml_func.types import Params, Structures

_JACOBIAN_SHARE = 0.25
"""Part of the free memory that Jacobians may fill before `auto` takes the positions path."""


class Start(NamedTuple):
    """The model that training starts from."""

    model_config: ModelConfig
    params: Params


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


def open_run(config: RunConfig) -> tuple[PreparedSet, RunConfig, Start | None]:
    """The prepared set, the config with all that follows from the data filled in, and the model to start from.

    Raises ConfigError, DataError or ModelError for what cannot be used.
    """
    data, training = config.data, config.training
    start = None if training.start_from is None else _start(config, training.start_from)
    model = config.model if start is None else start.model_config
    try:
        prepared = open_prepared(data, model.aev, training.precision)
    except ElementError as error:
        if start is None:
            raise
        raise ConfigError(
            f"{training.start_from} knows the elements {', '.join(model.aev.elements)}, and a model cannot learn new "
            f"ones: {error}"
        ) from None
    data = prepared.data
    model = model.model_copy(update={"aev": prepared.aev, "fidelities": data.fidelities, "baseline": data.baseline})
    training = _at_precision(training, prepared)
    if training.forces:
        training = training.model_copy(update={"force_path": _force_path(training, prepared)})
    return prepared, config.model_copy(update={"data": data, "model": model, "training": training}), start


def _start(config: RunConfig, path: Path) -> Start:
    """The model at `path`, if it is what the settings ask for. Raises ConfigError or ModelError."""
    model, params = load_model(path)
    for wanted, found, names in (
        (config.model, model, config.model.model_fields_set - {"aev"}),
        (config.model.aev, model.aev, config.model.aev.given),
    ):
        for name in sorted(names):
            if getattr(wanted, name) != getattr(found, name):
                raise ConfigError(
                    f"{name} must be that of the model that training starts from, got {getattr(wanted, name)}, and "
                    f"{path} has {getattr(found, name)}; leave {name} out, or train a new model"
                )
    if model.n_levels != len(config.data.fidelities):
        raise ConfigError(
            f"{path} predicts {model.n_levels} fidelity levels, and this run asks for {len(config.data.fidelities)}; "
            "a model cannot gain or lose levels: ask for as many, or train a new one"
        )
    dtype = getattr(torch, config.training.precision)
    networks = tree_map(lambda tensor: tensor.to(dtype), params.networks)
    return Start(model, Params(networks, params.self_energies))


def _at_precision(training: TrainConfig, prepared: PreparedSet) -> TrainConfig:
    """With the precision of a pre-saved set. Raises ConfigError where another one was given."""
    if training.precision != prepared.precision and "precision" in training.model_fields_set:
        raise ConfigError(
            f"precision must be that of the prepared set, got {training.precision}, and {prepared.path} has "
            f"{prepared.precision}; leave precision out, or prepare such a set"
        )
    return training.model_copy(update={"precision": prepared.precision})


def _force_path(training: TrainConfig, prepared: PreparedSet) -> str:
    if training.force_path != "auto":
        return training.force_path
    entries = int(jacobian_offsets(prepared.structures.sizes, prepared.aev.length)[-1])
    needed = entries * np.dtype(training.precision).itemsize
    return "jacobian" if needed < _JACOBIAN_SHARE * psutil.virtual_memory().available else "positions"


def run_data(config: RunConfig, prepared: PreparedSet, start: Start | None) -> RunData:
    """Labels, split and self energies of a run.

    Raises ConfigError or DataError for data that cannot be trained on.
    """
    labels = training_labels(config.data, prepared.structures)
    kept = complete_structures(config.data, labels, config.training.forces)
    split = _split(config, labels, kept, prepared.marks)
    _check_split(labels, split)
    elements = config.model.aev.elements
    species = species_of(elements, labels)
    counts = torch.from_numpy(composition(species, labels.offsets, len(elements)))
    if start is None:
        _check_elements(config, counts, labels, split)
    energies = torch.from_numpy(labels.energies)
    fit, refitted = _self_energies(config, counts[split.train], energies[split.train], start)
    targets = subtract_self_energies(fit.self_energies, counts, energies).numpy()
    source = Source(species, labels.positions, labels.offsets, len(elements), targets)
    return RunData(labels, labels.n_structures - len(kept), split, source, fit, refitted)


def _split(config: RunConfig, labels: Structures, kept: np.ndarray, marks: dict[str, int] | None) -> Split:
    """The split of the structures at `kept`, each part with its share of those that have the highest level's energy."""
    data, seed = config.data, config.training.seeds[0]
    strata = np.isfinite(labels.energies[kept, -1])
    if marks is None:
        split = make_split(data.split, strata, seed)
    else:
        listed = [marks[str(name)] for name in labels.ids[kept]]
        split = make_split_from_marks(data.split, listed, strata, seed)
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
            raise ConfigError(
                f"every element must occur in a training structure of level {level}, and {', '.join(absent)} occurs in "
                f"none; train on more structures, or leave it out: --elements {','.join(kept)}"
            )


def _self_energies(
    config: RunConfig, counts: torch.Tensor, energies: torch.Tensor, start: Start | None
) -> tuple[SelfEnergyFit, bool]:
    """SAEs (L,S) of the run, and whether they were fitted here. counts: (m,S), energies: (m,L) of training."""
    n_species = counts.shape[1]
    if start is not None and _levels(start.model_config) == _levels(config.model):
        return SelfEnergyFit(start.params.self_energies, n_species), False
    if not config.data.fit_self_energies:
        zeros = torch.zeros(energies.shape[1], n_species, dtype=torch.float64)
        return SelfEnergyFit(zeros, n_species), True
    return fit_level_self_energies(counts, energies), True


def _levels(model: ModelConfig) -> tuple[tuple[int, ...], int | None]:
    return model.fidelities, model.baseline


def make_loaders(config: RunConfig, data: RunData, prepared: PreparedSet, device: torch.device) -> dict[str, Loader]:
    """Batches of the training, validation and test structures, with the features that the run needs."""
    training, dtype = config.training, getattr(torch, config.training.precision)
    source = _with_features(config, data, prepared)
    sizes = (training.batch_size, training.valid_batch_size, training.test_batch_size)
    packers = [Packer(source, part, size, dtype, device) for part, size in zip(data.split, sizes, strict=True)]
    train_seed = training.seeds[1] if training.order == "shuffled" else None
    seeds = (train_seed, None, None)
    return {part: Loader(packer, seed) for part, packer, seed in zip(Split._fields, packers, seeds, strict=True)}


def _with_features(config: RunConfig, data: RunData, prepared: PreparedSet) -> Source:
    """The source with what the force path needs of the prepared set."""
    if not config.training.forces:
        return data.source._replace(aevs=prepared.aevs)
    source = data.source._replace(forces=data.labels.forces)
    if config.training.force_path == "positions":
        return source
    return source._replace(aevs=prepared.aevs, jacobians=prepared.jacobians)


def start_params(config: RunConfig, data: RunData, start: Start | None, device: torch.device) -> Params:
    """The parameters before the first step: drawn from the seed, or those of the model that training starts from."""
    generator = torch.Generator().manual_seed(config.training.seeds[1])
    drawn = init_params(config.model, generator, getattr(torch, config.training.precision))
    networks = drawn.networks if start is None else start.params.networks
    params: Params = tree_map(lambda tensor: tensor.to(device), Params(networks, data.self_energies.self_energies))
    return params
