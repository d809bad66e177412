"""Checkpoints: a model file that holds the state of its training too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.training.model_file import (
    filled_in,
    members_of,
    named,
    of_members,
    read_tensors,
    save_tensors,
    shapes_of,
)
from pykinml_func.training.optimizers import Optimizer
from pykinml_func.training.schedules import ScheduleState
from pykinml_func.types import ErrorSums, Networks, OptimizerState, Params, StepSums, Trainable, TrainState

CHECKPOINTS = "checkpoints"
"""A run's folder of them."""


class Progress(NamedTuple):
    """How far a run has come."""

    epoch: int
    """epochs done"""
    batch: int
    """batches done of the next one"""
    data: str
    """what the run trains on; see `resume.fingerprint`"""
    best: Params
    """of the epochs done"""
    sums: StepSums | None
    """over the errors of each of the batches done, (k,L) each, or (k,E,L); None for no batch"""


class Checkpoint(NamedTuple):
    """The training that a checkpoint holds, besides its model."""

    last: tuple[Networks, ...]
    """as the optimizer left them, where the model's are their running mean; else ()"""

    log_variances: Tensor
    optimizer: OptimizerState
    schedules: tuple[ScheduleState, ...]
    """of each member"""
    progress: Progress | None
    """None in checkpoints of older versions"""

    def of_member(self, place: int) -> Checkpoint:
        """One member's part of an ensemble's training, without the progress, which is of all."""
        last, log_variances, memory = tree_map(
            lambda leaf: leaf[place], (self.last, self.log_variances, self.optimizer)
        )
        return Checkpoint(last, log_variances, memory, (self.schedules[place],), None)


def save_checkpoint(
    directory: Path,
    model_config: ModelConfig,
    state: TrainState,
    schedules: Sequence[ScheduleState],
    optimizer_name: str,
    progress: Progress,
) -> None:
    """Write a model with the state of its training into a run's directory: optimizer, learned loss weights,
    learning-rate schedule (of each member), the best model so far. One from within an epoch is removed by the next.

    Where a running mean of the networks is taken, that is the model.
    """
    tensors = named(state.optimizer, "optimizer.") | {"log_variances": state.log_variances}
    if state.average:
        tensors |= named(state.params.networks, "last.")
    tensors |= named(progress.best, "best.")
    if progress.sums is not None:
        tensors |= named(progress.sums, "sums.")
    done = {"epoch": progress.epoch, "batch": progress.batch, "data": progress.data}
    training = {"optimizer": optimizer_name, "schedules": [each._asdict() for each in schedules], "progress": done}
    within = list(directory.glob(f"{CHECKPOINTS}/*_batch_*.safetensors"))
    path = directory / CHECKPOINTS / _checkpoint_name(progress)
    save_tensors(path, model_config, state.evaluated, tensors, {"training": json.dumps(training)})
    for old in within:
        if old != path:
            old.unlink()


def _checkpoint_name(progress: Progress) -> str:
    """In alphabetical order as in time."""
    return f"epoch_{progress.epoch:05d}{f'_batch_{progress.batch:07d}' if progress.batch else ''}.safetensors"


def newest_checkpoint(directory: Path) -> Path:
    """The last checkpoint of a run. Raises ModelError where there is none."""
    found = sorted((directory / CHECKPOINTS).glob("epoch_*.safetensors"), key=lambda path: path.stem)
    if not found:
        raise ModelError(
            f"{directory} must be the directory of a run that was cut short, got no {CHECKPOINTS} in it; start anew "
            "without --resume"
        )
    return found[-1]


def load_checkpoint(path: Path, optimizer: Optimizer, optimizer_name: str, n_tasks: int) -> Checkpoint:
    """The state of the training that the checkpoint at `path` was written in.

    n_tasks: learned loss weights of the run that goes on. Raises ModelError for a model without such a state, or
    with that of another optimizer or of other losses.
    """
    model_config, tensors, metadata = read_tensors(path)
    if "training" not in metadata:
        raise ModelError(
            f"{path} must be a checkpoint to keep its optimizer, got a model alone; give one of the run's "
            "checkpoints/, or leave keep_optimizer out"
        )
    if metadata["format_version"] == "1":
        raise ModelError(
            f"{path} is a checkpoint of an older version, whose optimizer cannot be kept; its model can be trained on: "
            "leave keep_optimizer out"
        )
    named_optimizer, schedules, done = _training_of(path, metadata["training"])
    if named_optimizer != optimizer_name:
        raise ModelError(
            f"{path} holds the state of {named_optimizer}, and this run's optimizer is {optimizer_name}; take "
            "that one, or leave keep_optimizer out"
        )
    log_variances = tensors.get("log_variances", torch.zeros(0))
    if log_variances.shape[-1] != n_tasks:
        raise ModelError(
            f"{path} holds {log_variances.shape[-1]} learned loss weights, and this run has {n_tasks}; "
            "train to the same labels, or leave keep_optimizer out"
        )
    n_members = members_of(metadata)
    if len(schedules) != n_members:
        raise ModelError(f"{path} holds {len(schedules)} schedules for {n_members} members; it is damaged")
    params = shapes_of(model_config, n_members)
    trainable = Trainable(shapes_of(model_config, 1).networks, torch.zeros(n_tasks))
    shapes = trainable.log_variances, optimizer.init(trainable)
    weights, memory = of_members(shapes, n_members)
    averaged = any(name.startswith("last.") for name in tensors)
    return Checkpoint(
        filled_in(path, params.networks, tensors, "last.") if averaged else (),
        filled_in(path, weights, {"log_variances": log_variances}, "log_variances."),
        filled_in(path, memory, tensors, "optimizer."),
        schedules,
        None if done is None else _progress(path, done, params, tensors),
    )


def _training_of(path: Path, text: str) -> tuple[str, tuple[ScheduleState, ...], Mapping[str, Any] | None]:
    """The optimizer's name, the schedules and the progress that the metadata tell. Raises ModelError."""
    try:
        training = json.loads(text)
        schedules = training["schedules"] if "schedules" in training else [training["schedule"]]  # before format 4
        done = training.get("progress")
        if done is not None:
            done = {"epoch": int(done["epoch"]), "batch": int(done["batch"]), "data": str(done["data"])}
        return training["optimizer"], tuple(ScheduleState(**each) for each in schedules), done
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} holds a state of training that cannot be read ({error!r}); it is damaged: take another checkpoint"
        ) from None


def _progress(path: Path, done: Mapping[str, Any], params: Params, tensors: Mapping[str, Tensor]) -> Progress:
    """done: what the metadata say; params: of the model's shapes."""
    kinds = {name.split(".")[1] for name in tensors if name.startswith("sums.")}
    column = torch.empty(done["batch"], *params.self_energies.shape[:-1])
    errors = {kind: ErrorSums(*[column] * 4) if kind in kinds else None for kind in ("energy", "force")}
    template = StepSums(**errors) if kinds else None  # type: ignore[arg-type]
    best, sums = filled_in(path, params, tensors, "best."), filled_in(path, template, tensors, "sums.")
    return Progress(done["epoch"], done["batch"], done["data"], best, sums)
