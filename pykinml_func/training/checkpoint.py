"""Models and checkpoints on disk: one safetensors file each, tensors plus the whole configuration as JSON. Nothing is
unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.files import write_atomically
from pykinml_func.training.schedules import PlateauState
from pykinml_func.types import Networks, Params, TrainState
from pykinml_func.version import __version__

_FORMAT = "pykinml_func model"
_FORMAT_VERSION = 1
_UNITS = {"energy": "eV", "length": "Å"}


def save_model(path: str | Path, model_config: ModelConfig, params: Params) -> None:
    """Write a model whole or not at all; `load_model` reads it."""
    _save(Path(path), _tensors_of(params), model_config, {})


def save_checkpoint(
    path: Path, model_config: ModelConfig, state: TrainState, plateau: PlateauState, epoch: int
) -> None:
    """Write a model with the state of its training: optimizer moments, learning-rate schedule, epochs done."""
    moments = {"optimizer.step": state.optimizer.step}
    for name, networks in (("first", state.optimizer.first), ("second", state.optimizer.second)):
        moments |= {f"optimizer.{name}.{key}": tensor for key, tensor in _tensors_of_networks(networks).items()}
    training = {"epoch": epoch, "plateau": plateau._asdict()}
    _save(path, _tensors_of(state.params) | moments, model_config, {"training": json.dumps(training)})


def _save(path: Path, tensors: Mapping[str, Tensor], model_config: ModelConfig, extra: dict[str, str]) -> None:
    metadata = {
        "format": _FORMAT,
        "format_version": str(_FORMAT_VERSION),
        "package_version": __version__,
        "units": json.dumps(_UNITS),
        "model": model_config.model_dump_json(),
        **extra,
    }
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(save(contiguous, metadata)))


def _tensors_of(params: Params) -> dict[str, Tensor]:
    return {"self_energies": params.self_energies, **_tensors_of_networks(params.networks)}


def _tensors_of_networks(networks: Networks) -> dict[str, Tensor]:
    return {f"{kind}.{k}": tensor for kind, layers in networks._asdict().items() for k, tensor in enumerate(layers)}


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[ModelConfig, Params]:
    """A model's configuration and parameters. Raises ModelError for a file that is none, or is of a newer version."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no model file {path}; `pykinml train` writes model.safetensors into its run directory")
    try:
        with safe_open(path, framework="pt") as file:
            model_config = _read_config(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ModelError(f"{path} must be a model of `pykinml train` (.safetensors): {error}") from None
    params: Params = tree_map(lambda tensor: tensor.to(device), _params_from(path, model_config, tensors))
    return model_config, params


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


def _params_from(path: Path, model_config: ModelConfig, tensors: dict[str, Any]) -> Params:
    layers = range(len(model_config.neurons))
    try:
        weights = tuple(tensors[f"weights.{k}"] for k in layers)
        biases = tuple(tensors[f"biases.{k}"] for k in layers) if model_config.biases else ()
        params = Params(Networks(weights, biases), tensors["self_energies"])
    except KeyError as error:
        raise ModelError(f"{path} lacks the tensor {error}; it is damaged, or no whole model") from None
    species, widths = len(model_config.aev.elements), (model_config.aev.length, *model_config.neurons)
    expected: dict[str, tuple[int, ...]] = {f"weights.{k}": (species, widths[k + 1], widths[k]) for k in layers}
    expected |= {f"biases.{k}": (species, widths[k + 1]) for k in layers if model_config.biases}
    for name, shape in {**expected, "self_energies": (species,)}.items():
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{path} must hold {name} of shape {shape}, got {tuple(tensors[name].shape)}")
    return params
