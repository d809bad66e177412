"""Going on with a run that was cut short, as if it had not been."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pykinml_func.config import RunConfig
from pykinml_func.data.manifest import read_manifest
from pykinml_func.data.prepared import PreparedSet
from pykinml_func.data.splits import Split
from pykinml_func.errors import ConfigError, ModelError
from pykinml_func.potential.ensemble import as_params
from pykinml_func.training.checkpoint import Progress, load_checkpoint, newest_checkpoint
from pykinml_func.training.model_file import load_ensemble
from pykinml_func.training.optimizers import build_optimizer
from pykinml_func.training.start import Start
from pykinml_func.training.step import build_objective


class Resumed(NamedTuple):
    """A run as its last checkpoint has it."""

    start: Start
    progress: Progress
    history: list[dict[str, float]]
    """a record of each epoch done"""


def read_resumed(config: RunConfig) -> Resumed:
    """The run in `config.training.output`. Raises ConfigError or ModelError where it cannot go on."""
    training, directory = config.training, config.training.output
    path = newest_checkpoint(directory)
    loaded = load_ensemble(path)
    model_config, params = loaded.model_config, as_params(loaded.members)
    n_tasks = build_objective(training).n_tasks(len(model_config.fidelities))
    checkpoint = load_checkpoint(path, build_optimizer(training), training.optimizer, n_tasks)
    progress = checkpoint.progress
    if progress is None:
        raise ModelError(
            f"{path} is a checkpoint of an older version, which does not say how far its run was; train on from it "
            "with --start-from and --keep-optimizer"
        )
    if progress.epoch >= training.epochs:
        raise ConfigError(
            f"{directory} has had all its {training.epochs} epochs; give more with --epochs, or train on from its "
            "model with --start-from"
        )
    schedule = checkpoint.schedules[0]  # the members' differ in what validation decides alone
    planned = schedule.end - (schedule.epochs - progress.epoch)
    if training.epochs != planned and (training.schedule == "cosine" or training.force_weight_end is not None):
        raise ConfigError(
            f"epochs cannot change on the way where the schedule of {directory} falls over all {planned} of them, got "
            f"{training.epochs}; leave it out, or train on with --start-from"
        )
    return Resumed(Start(model_config, params, checkpoint), progress, _history(directory, progress.epoch))


def _history(directory: Path, epochs: int) -> list[dict[str, float]]:
    """The records of the epochs done. Raises ModelError."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    if len(lines) < epochs:
        raise ModelError(f"{path} must have a line for each of {epochs} epochs, got {len(lines)}; start the run anew")
    return [json.loads(line) for line in lines[:epochs]]


def fingerprint(prepared: PreparedSet, split: Split) -> str:
    """What is the same for the same structures, labels and split."""
    checksums = read_manifest(prepared.path).checksums
    digest = hashlib.sha256(json.dumps([checksums, *map(len, split)], sort_keys=True).encode())
    digest.update(np.concatenate(split).astype(np.int64).tobytes())
    return digest.hexdigest()


def check_data(resumed: Resumed, found: str, directory: Path) -> None:
    """Raises ConfigError where a run would go on with other data than it began with. found: their `fingerprint`."""
    if resumed.progress.data != found:
        raise ConfigError(
            f"the data and their split must be those that {directory} was begun with, got others; bring the input and "
            "split files back, or train on from its model with --start-from"
        )
