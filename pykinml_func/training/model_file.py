"""Model files: one safetensors file each, tensors plus the whole configuration as JSON. Nothing is unpickled.

A tensor is named by its place: `networks.0.weights.2` is the third layer of the lowest level. Where a file holds
several members, every tensor of theirs has a leading axis for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.files import write_atomically
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import as_members, as_params, member_of, n_members_of, stack_members
from pykinml_func.types import Calibration, Domain, Ensemble, Params
from pykinml_func.version import __version__

_FORMAT = "pykinml_func model"
_FORMAT_VERSION = 4
_MEMBERS = "members"
"""In a file's metadata: how many there are, where there are several."""

_UNITS = {"energy": "eV", "length": "Å"}


def save_model(path: str | Path, model_config: ModelConfig, params: Params) -> None:
    """Write a model whole or not at all; `load_model` reads it."""
    save_ensemble(path, Ensemble(model_config, stack_members([params])))


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[ModelConfig, Params]:
    """A model's configuration and parameters, from a model or a checkpoint.

    Raises ModelError for a file that is none, is of a newer version, or holds several members.
    """
    found = load_ensemble(path, device)
    if found.n_members > 1:
        raise ModelError(
            f"{path} must hold one model, got an ensemble of {found.n_members}; use load_ensemble, PyKinMLCalculator "
            "or Predictor, or take it apart with `pykinml split`"
        )
    return found.model_config, member_of(found.members, 0)


def save_ensemble(path: str | Path, ensemble: Ensemble) -> None:
    """Write a model file whole or not at all; `load_ensemble` reads it."""
    parts = {"calibration.": ensemble.calibration, "domain.": ensemble.domain}
    tensors = {name: tensor for prefix, part in parts.items() for name, tensor in named(part, prefix).items()}
    save_tensors(Path(path), ensemble.model_config, as_params(ensemble.members), tensors, {})


def load_ensemble(path: str | Path, device: str | torch.device = "cpu") -> Ensemble:
    """All that a model file or a checkpoint holds of its model, or models.

    Raises ModelError for a file that is none, or is of a newer version.
    """
    path = Path(path)
    model_config, tensors, metadata = read_tensors(path)
    members = as_members(filled_in(path, shapes_of(model_config, members_of(metadata)), tensors))
    _check_numbers(path, members)
    calibration, domain = _extras(model_config, tensors)
    found = Ensemble(
        model_config,
        members,
        _filled_in_or_none(path, calibration, tensors, "calibration."),
        _filled_in_or_none(path, domain, tensors, "domain."),
    )
    placed: tuple[Any, ...] = tree_map_only(Tensor, lambda tensor: tensor.to(device), tuple(found[1:]))
    return Ensemble(model_config, *placed)


def join_ensembles(ensembles: Sequence[Ensemble], names: Sequence[str]) -> Ensemble:
    """The members of all, in that order, as one ensemble; names: what each is called in a message.

    Several keep the domain that all of them share, and no calibration, which is of other means and spreads. Raises
    ModelError for models that differ in more than their parameters, and for members that are the same.
    """
    first, *others = ensembles
    for name, other in zip(names[1:], others, strict=True):
        if differing := _differing(first, other):
            raise ModelError(
                f"models of one ensemble must share their settings, and {name} differs from the first in "
                f"{', '.join(differing)}; leave it out"
            )
    if not others:
        return first
    _check_distinct(ensembles, names)
    members: Params = tree_map(lambda *leaves: torch.cat(leaves), *(each.members for each in ensembles))
    return Ensemble(first.model_config, members, domain=_shared_domain(ensembles))


def _check_distinct(ensembles: Sequence[Ensemble], names: Sequence[str]) -> None:
    """Raises ModelError for members that are the same: the spread would be too small."""
    known: dict[bytes, int] = {}
    for place, (name, ensemble) in enumerate(zip(names, ensembles, strict=True)):
        numbers = torch.cat([leaf.flatten(1) for leaf in tree_leaves(ensemble.members)], dim=1)
        for own in numbers.cpu().numpy():
            same = known.setdefault(own.tobytes(), place)
            if same != place:
                raise ModelError(
                    f"members of one ensemble must differ, and one of {name} is one of {names[same]}; leave it out"
                )


def split_ensemble(ensemble: Ensemble) -> list[Ensemble]:
    """Each member alone, with the domain; a calibration is of all of them together."""
    config, members, _, domain = ensemble
    alone = [stack_members([member_of(members, place)]) for place in range(ensemble.n_members)]
    return [Ensemble(config, member, domain=domain) for member in alone]


def _differing(one: Ensemble, other: Ensemble) -> list[str]:
    """Settings in which two models differ."""
    mine, theirs = ({**dict(each.model_config), **dict(each.model_config.aev)} for each in (one, other))
    names = [name for name in mine if name != "aev" and mine[name] != theirs[name]]
    precisions = [each.members.networks[0].weights[0].dtype for each in (one, other)]
    return names if precisions[0] == precisions[1] else [*names, "precision"]


def _shared_domain(ensembles: Sequence[Ensemble]) -> Domain | None:
    """The domain that all have, bit for bit."""
    first = ensembles[0].domain
    for other in (each.domain for each in ensembles[1:]):
        if first is None or other is None or not all(map(torch.equal, first, other)):
            return None
    return first


def members_of(metadata: Mapping[str, str]) -> int:
    """How many members a file holds."""
    return int(metadata.get(_MEMBERS, "1"))


def shapes_of(model_config: ModelConfig, n_members: int) -> Params:
    """Parameters of the shapes that a file of so many members holds."""
    params = init_params(model_config, torch.Generator())
    shapes: Params = of_members(params, n_members)
    return shapes


def of_members(shapes: Any, n_members: int) -> Any:
    """A tree of tensors as that of so many members, without memory for it; as it is for one."""
    return shapes if n_members == 1 else tree_map(lambda leaf: leaf.expand(n_members, *leaf.shape), shapes)


def _extras(model_config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[Calibration, Domain]:
    """Calibration and domain of the shapes that a file holds, whose whitener has a width of its own."""
    n_levels, n_species, length = model_config.n_levels, len(model_config.aev.elements), model_config.aev.length
    width = tensors.get("domain.whitener", torch.empty(1)).shape[-1:].numel()
    calibration = Calibration(torch.empty(n_levels), torch.empty(n_levels), torch.empty(()))
    shapes = (n_species, length), (n_species, length, width), (n_species,)
    return calibration, Domain(*map(torch.empty, shapes))


def _filled_in_or_none(path: Path, template: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    """`filled_in`, or None where the file has none of it."""
    there = any(f"{prefix}{field}" in tensors for field in template._fields)
    return filled_in(path, template, tensors, prefix) if there else None


def _check_numbers(path: Path, members: Params) -> None:
    """Raises ModelError for numbers that no model of ours has."""
    if not all(leaf.isfinite().all() for leaf in tree_leaves(members)):
        raise ModelError(f"{path} holds numbers that are not finite; it is damaged: take another checkpoint or model")
    found = {leaf.dtype for leaf in tree_leaves(members.networks)}
    if len(found) > 1 or members.self_energies.dtype != torch.float64:
        raise ModelError(
            f"{path} must hold networks in one precision and self energies in float64, got "
            f"{', '.join(sorted(map(str, found)))} and {members.self_energies.dtype}; it is damaged"
        )


def save_tensors(
    path: Path, model_config: ModelConfig, params: Params, others: Mapping[str, Tensor], extra: dict[str, str]
) -> None:
    """Write a model, or several members, and other tensors with it, whole or not at all. extra: metadata of its own."""
    n_members = n_members_of(params)
    metadata = {
        "format": _FORMAT,
        "format_version": str(_FORMAT_VERSION),
        "package_version": __version__,
        "units": json.dumps(_UNITS),
        "model": model_config.model_dump_json(),
        **({_MEMBERS: str(n_members)} if n_members > 1 else {}),
        **extra,
    }
    tensors = {**named(params), **others}
    contiguous = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(save(contiguous, metadata)))


def named(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a tree of NamedTuples and tuples, named by their places."""
    if tree is None:
        return {}
    if isinstance(tree, Tensor):
        return {prefix.removesuffix("."): tree}
    branches = tree._asdict().items() if hasattr(tree, "_asdict") else enumerate(tree)
    return {name: leaf for key, branch in branches for name, leaf in named(branch, f"{prefix}{key}.").items()}


def filled_in(path: Path, template: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    """`template` with the tensors of its places, of the same shapes. Raises ModelError."""
    if template is None:
        return None
    if not isinstance(template, Tensor):
        names = getattr(template, "_fields", range(len(template)))
        filled = [filled_in(path, b, tensors, f"{prefix}{name}.") for name, b in zip(names, template, strict=True)]
        return type(template)(*filled) if hasattr(template, "_fields") else tuple(filled)
    name = prefix.removesuffix(".")
    if name not in tensors:
        raise ModelError(f"{path} lacks the tensor {name!r}; it is damaged, or no whole model")
    found = tensors[name]
    if found.shape != template.shape:
        raise ModelError(f"{path} must hold {name} of shape {tuple(template.shape)}, got {tuple(found.shape)}")
    if found.dtype not in (torch.float32, torch.float64):
        raise ModelError(f"{path} must hold {name} in float32 or float64, got {found.dtype}")
    return found


def read_tensors(path: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, str]]:
    """The model's configuration, the file's tensors by name, and its metadata. Raises ModelError."""
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
    numbers = metadata.get("format_version", ""), metadata.get(_MEMBERS, "1")
    if "model" not in metadata or not all(number.isdecimal() for number in numbers):
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
