"""Model files as older versions of the package wrote them, or as something damaged them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def metadata_of(path: Path) -> dict[str, str]:
    """As the file holds them."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def rewritten(path: Path, tensors: Mapping[str, torch.Tensor | None] | None = None, **metadata: str | None) -> Path:
    """The file, some of its tensors or metadata replaced, or left out where None."""
    kept, told = load_file(path) | (tensors or {}), metadata_of(path) | metadata
    save_file(
        {name: tensor for name, tensor in kept.items() if tensor is not None},
        path,
        {name: text for name, text in told.items() if text is not None},
    )
    return path


def of_format_1(path: Path, **metadata: str) -> Path:
    """The file as the first version of the package wrote it: no levels, in names, shapes and settings."""
    tensors, told = load_file(path), metadata_of(path)
    model = json.loads(told["model"])
    for name in ("pass_aev", "pass_energy", "sum_levels", "fidelities", "baseline"):
        del model[name]
    old = {name.removeprefix("networks.0."): tensor for name, tensor in tensors.items()}
    old["self_energies"] = old["self_energies"][0].clone()
    save_file(old, path, {**told, "model": json.dumps(model), "format_version": "1", **metadata})
    return path
