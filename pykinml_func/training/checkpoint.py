"""Models and checkpoints on disk: one safetensors file each, tensors plus the whole configuration as JSON. Nothing is
unpickled.

A tensor is named by its place: `networks.0.weights.2` is the third layer of the lowest level.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.files import write_atomically
from pykinml_func.potential.energy import init_params
from pykinml_func.training.optimizers import Optimizer
from pykinml_func.training.schedules import ScheduleState
from pykinml_func.types import ErrorSums, Networks, OptimizerState, Params, StepSums, Trainable, TrainState
from pykinml_func.version import __version__

_FORMAT = "pykinml_func model"
_FORMAT_VERSION = 3
_UNITS = {"energy": "eV", "length": "Å"}

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
    """over the errors of each of the batches done, (k,L) each; None for no batch"""


class Checkpoint(NamedTuple):
    """The training that a checkpoint holds, besides its model."""

    last: tuple[Networks, ...]
    """as the optimizer left them, where the model's are their running mean; else ()"""

    log_variances: Tensor
    optimizer: OptimizerState
    schedule: ScheduleState
    progress: Progress | None
    """None in checkpoints of older versions"""


def save_model(path: str | Path, model_config: ModelConfig, params: Params) -> None:
    """Write a model whole or not at all; `load_model` reads it."""
    _save(Path(path), _named(params), model_config, {})


def save_checkpoint(
    directory: Path,
    model_config: ModelConfig,
    state: TrainState,
    schedule: ScheduleState,
    optimizer_name: str,
    progress: Progress,
) -> None:
    """Write a model with the state of its training into a run's directory: optimizer, learned loss weights,
    learning-rate schedule, the best model so far. One from within an epoch is removed by the next.

    Where a running mean of the networks is taken, that is the model.
    """
    tensors = _named(state.evaluated) | _named(state.optimizer, "optimizer.") | {"log_variances": state.log_variances}
    if state.average:
        tensors |= _named(state.params.networks, "last.")
    tensors |= _named(progress.best, "best.")
    if progress.sums is not None:
        tensors |= _named(progress.sums, "sums.")
    done = {"epoch": progress.epoch, "batch": progress.batch, "data": progress.data}
    training = {"optimizer": optimizer_name, "schedule": schedule._asdict(), "progress": done}
    within = list(directory.glob(f"{CHECKPOINTS}/*_batch_*.safetensors"))
    path = directory / CHECKPOINTS / _checkpoint_name(progress)
    _save(path, tensors, model_config, {"training": json.dumps(training)})
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


def _save(path: Path, tensors: Mapping[str, Tensor], model_config: ModelConfig, extra: dict[str, str]) -> None:
    metadata = {
        "format": _FORMAT,
        "format_version": str(_FORMAT_VERSION),
        "package_version": __version__,
        "units": json.dumps(_UNITS),
        "model": model_config.model_dump_json(),
        **extra,
    }
    contiguous = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(save(contiguous, metadata)))


def _named(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a tree of NamedTuples and tuples, named by their places."""
    if tree is None:
        return {}
    if isinstance(tree, Tensor):
        return {prefix.removesuffix("."): tree}
    branches = tree._asdict().items() if hasattr(tree, "_asdict") else enumerate(tree)
    return {name: leaf for key, branch in branches for name, leaf in _named(branch, f"{prefix}{key}.").items()}


def _filled(path: Path, template: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    """`template` with the tensors of its places, of the same shapes. Raises ModelError."""
    if template is None:
        return None
    if not isinstance(template, Tensor):
        names = getattr(template, "_fields", range(len(template)))
        filled = [_filled(path, b, tensors, f"{prefix}{name}.") for name, b in zip(names, template, strict=True)]
        return type(template)(*filled) if hasattr(template, "_fields") else tuple(filled)
    name = prefix.removesuffix(".")
    if name not in tensors:
        raise ModelError(f"{path} lacks the tensor {name!r}; it is damaged, or no whole model")
    if tensors[name].shape != template.shape:
        shapes = tuple(template.shape), tuple(tensors[name].shape)
        raise ModelError(f"{path} must hold {name} of shape {shapes[0]}, got {shapes[1]}")
    return tensors[name]


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[ModelConfig, Params]:
    """A model's configuration and parameters, from a model or a checkpoint.

    Raises ModelError for a file that is none, or is of a newer version.
    """
    path = Path(path)
    model_config, tensors, _ = _read(path)
    template = init_params(model_config, torch.Generator())
    params: Params = tree_map(lambda tensor: tensor.to(device), _filled(path, template, tensors))
    return model_config, params


def load_checkpoint(path: Path, optimizer: Optimizer, optimizer_name: str, n_tasks: int) -> Checkpoint:
    """The state of the training that the checkpoint at `path` was written in.

    n_tasks: learned loss weights of the run that goes on. Raises ModelError for a model without such a state, or
    with that of another optimizer or of other losses.
    """
    model_config, tensors, metadata = _read(path)
    if "training" not in metadata:
        raise ModelError(
            f"{path} must be a checkpoint to keep its optimizer, got a model alone; give one of the run's "
            "checkpoints/, or leave keep_optimizer out"
        )
    training = json.loads(metadata["training"])
    if metadata["format_version"] == "1":
        raise ModelError(
            f"{path} is a checkpoint of an older version, whose optimizer cannot be kept; its model can be trained on: "
            "leave keep_optimizer out"
        )
    if training["optimizer"] != optimizer_name:
        raise ModelError(
            f"{path} holds the state of {training['optimizer']}, and this run's optimizer is {optimizer_name}; take "
            "that one, or leave keep_optimizer out"
        )
    if len(tensors.get("log_variances", ())) != n_tasks:
        raise ModelError(
            f"{path} holds {len(tensors.get('log_variances', ()))} learned loss weights, and this run has {n_tasks}; "
            "train to the same labels, or leave keep_optimizer out"
        )
    params = init_params(model_config, torch.Generator())
    log_variances = tensors["log_variances"]
    template = optimizer.init(Trainable(params.networks, log_variances))
    memory = _filled(path, template, tensors, "optimizer.")
    averaged = any(name.startswith("last.") for name in tensors)
    last = _filled(path, params.networks, tensors, "last.") if averaged else ()
    progress = _progress(path, training.get("progress"), params, tensors)
    return Checkpoint(last, log_variances, memory, ScheduleState(**training["schedule"]), progress)


def _progress(
    path: Path, done: Mapping[str, Any] | None, params: Params, tensors: Mapping[str, Tensor]
) -> Progress | None:
    """done: what the metadata say; params: of the model's shapes."""
    if done is None:
        return None
    kinds = {name.split(".")[1] for name in tensors if name.startswith("sums.")}
    column = torch.empty(done["batch"], len(params.networks))
    errors = {kind: ErrorSums(*[column] * 4) if kind in kinds else None for kind in ("energy", "force")}
    template = StepSums(**errors) if kinds else None  # type: ignore[arg-type]
    best, sums = _filled(path, params, tensors, "best."), _filled(path, template, tensors, "sums.")
    return Progress(done["epoch"], done["batch"], done["data"], best, sums)


def _read(path: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise ModelError(f"no model file {path}; `pykinml train` writes model.safetensors into its run directory")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            model_config = _read_config(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ModelError(
            f"{path} must be a model of `pykinml train` (.safetensors), and is another file or a damaged one "
            f"({error}); a .pt of PyKinML becomes one by `pykinml convert`"
        ) from None
    if metadata["format_version"] == "1":  # before there were levels
        self_energies = tensors.pop("self_energies", torch.zeros(0))
        tensors = {f"networks.0.{name}": tensor for name, tensor in tensors.items()}
        tensors["self_energies"] = self_energies.unsqueeze(0)
    return model_config, tensors, metadata


def _read_config(path: Path, metadata: dict[str, str]) -> ModelConfig:
    if metadata.get("format") != _FORMAT:
        raise ModelError(f"{path} must be a model of `pykinml train`; it is a safetensors file of something else")
    if not {"format_version", "model"} <= metadata.keys() or not metadata["format_version"].isdecimal():
        raise ModelError(f"{path} lacks the configuration of a model; it is damaged")
    if int(metadata["format_version"]) > _FORMAT_VERSION:
        raise ModelError(
            f"{path} is of model format {metadata['format_version']} (pykinml-func "
            f"{metadata.get('package_version')}), and this "
            f"pykinml-func {__version__} reads up to {_FORMAT_VERSION}; upgrade pykinml-func"
        )
    try:
        return ModelConfig.model_validate_json(metadata["model"])
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ModelError(f"{path} holds a configuration that cannot be used: {faults}") from None
