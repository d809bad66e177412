"""Checkpoints of PyKinML (`.pt`), single and multi-fidelity, and our models of the same energies.

# L fidelity levels, S species, D AEV length
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.config.run import Activation
from pykinml_func.errors import ModelError
from pykinml_func.potential.multifidelity import input_length
from pykinml_func.training.pykinml_pickle import StandIn, numbers_of, read_pickle
from pykinml_func.types import Networks, Params

_LEVELS = ("NNs", "NNs_hf")
_TENSOR_NAME = re.compile(r"(NNs|NNs_hf)\.(\d+)\.(\d+)\.linear\.(weight|bias)")

_MOST_SIZES = 4
"""AEV sizes that an error suggests."""


class PyKinMLModel(NamedTuple):
    """The model of a checkpoint, with PyKinML's own numbers."""

    networks: tuple[Networks, ...]
    """one a fidelity level, lowest first"""
    activations: tuple[str, ...]
    self_energies: Tensor
    """(S,) eV, part of the lowest level's atomic energies; zero where add_sae is off"""
    pass_aev: bool
    pass_energy: bool
    sum_levels: bool

    @property
    def n_species(self) -> int:
        """S."""
        return len(self.self_energies)

    @property
    def aev_length(self) -> int:
        """D."""
        return self.networks[0].weights[0].shape[2]


def read_pykinml_checkpoint(path: str | Path) -> PyKinMLModel:
    """The model that PyKinML saved. Nothing that the file names is imported or called.

    Raises ModelError for a file that is none, that names what PyKinML does not save, or whose networks our models
    cannot express.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no checkpoint {path} (from {Path.cwd()}); PyKinML writes model-NNNN.pt")
    content = read_pickle(path)
    parts = ("model_state_dict", "params")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in parts):
        got = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ModelError(f"{path} must hold model_state_dict and params, as PyKinML writes them, got {got}")
    try:
        return _model_of(content)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _model_of(content: Mapping[str, Any]) -> PyKinMLModel:
    params = content["params"]
    networks = _networks(content["model_state_dict"])
    activations = _activations(params, "activations")
    if len(networks) > 1 and _activations(params, "activations_hf") != activations:
        raise ModelError("activations must be the same at both levels, got others in activations_hf; train anew")
    # after load_model, PyKinML's params hold the SAEs of the run before, and sae_energies those that it trained with
    written = content.get("sae_energies", params.get("sae_energies"))
    self_energies = torch.tensor(numbers_of(written), dtype=torch.float64)
    n_species = len(networks[0].weights[0])
    if len(self_energies) != n_species:
        raise ModelError(f"sae_energies must be one a network, got {len(self_energies)} for {n_species}; it is damaged")
    return PyKinMLModel(
        networks,
        activations,
        self_energies if params.get("add_sae") else torch.zeros_like(self_energies),
        pass_aev=bool(params.get("pass_aev", True)),
        pass_energy=bool(params.get("pass_eng", True)),
        sum_levels=bool(params.get("dscr", True)),
    )


def _networks(state: Mapping[str, Any]) -> tuple[Networks, ...]:
    """Those of each level, stacked over species."""
    tensors: dict[str, dict[tuple[str, ...], Tensor]] = {level: {} for level in _LEVELS}
    for key, tensor in state.items():
        name = str(key).removeprefix("module.")  # of DistributedDataParallel
        match = _TENSOR_NAME.fullmatch(name)
        if match and isinstance(tensor, Tensor):
            level, *place = match.groups()
            tensors[level][tuple(place)] = tensor.detach()
        elif name != "log_sigma":  # the weights of the losses
            raise ModelError(
                f"model_state_dict must hold NNs, NNs_hf and log_sigma alone, got {name}; it is no PyKinML's"
            )
    if not tensors["NNs"]:
        raise ModelError("model_state_dict must hold networks (NNs.0.0.linear.weight and so on), got none")
    return tuple(_stacked(level, tensors[level]) for level in _LEVELS if tensors[level])


def _stacked(level: str, tensors: Mapping[tuple[str, ...], Tensor]) -> Networks:
    """The networks of a level. tensors: keyed by species, layer, and weight or bias."""
    n_species, n_layers = (1 + max(int(key[place]) for key in tensors) for place in (0, 1))
    kinds = sorted({kind for *_, kind in tensors})
    precisions = {str(tensor.dtype) for tensor in tensors.values()}
    if len(precisions) > 1 or not precisions <= {"torch.float32", "torch.float64"}:
        raise ModelError(f"{level} must be all float64 or all float32, got {', '.join(sorted(precisions))}")

    def stack(kind: str) -> tuple[Tensor, ...]:
        layers = [[tensors[str(s), str(k), kind] for s in range(n_species)] for k in range(n_layers)]
        return tuple(map(torch.stack, layers))

    regular = len(tensors) == n_species * n_layers * len(kinds)
    try:
        networks = Networks(stack("weight"), stack("bias") if "bias" in kinds else ())
        shapes = [weight.shape[:2] for weight in networks.weights if weight.ndim == 3]
        regular &= len(shapes) == n_layers and [bias.shape for bias in networks.biases] in ([], shapes)
    except (KeyError, RuntimeError):
        regular = False
    if not regular:
        raise ModelError(f"{level} must have the same layers for every element, got others; train a model anew")
    return networks


def _activations(params: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The names, which our models share between elements."""
    by_species = params.get(key)
    if not isinstance(by_species, list) or not by_species or not all(isinstance(each, list) for each in by_species):
        raise ModelError(f"params must hold {key}, a list for each element, got {by_species!r}")
    first, *others = [tuple(map(_activation, each)) for each in by_species]
    known = get_args(Activation)
    if any(other != first for other in others):
        raise ModelError(f"{key} must be the same for every element, got others; train a model anew")
    if not set(first) <= set(known):
        raise ModelError(f"{key} must be of {', '.join(known)}, got {', '.join(first)}; train a model anew")
    return first


def _activation(item: Any) -> str:
    """A name, or that of a pickled function (a stand-in), of nn.Tanh() (a stand-in's instance) or of torch.tanh."""
    if isinstance(item, StandIn) and item.name == "builtins.getattr":
        item = item.arguments[-1]
    name = str(getattr(item, "name", item))
    return name.rpartition(".")[2].lower().removeprefix("my_")


def convert_pykinml(
    model: PyKinMLModel, aev: AEVConfig, fidelities: tuple[int, ...], baseline: int | None = None
) -> tuple[ModelConfig, Params]:
    """Our model of the same energies. aev: what no checkpoint holds; fidelities: the numbers of its levels; baseline:
    the level that its energies are relative to, if it was trained with delta.

    Raises ModelError where `aev` does not fit the networks, or the levels have other layers than each other.
    """
    _check_aev(model, aev)
    if len(fidelities) != len(model.networks):
        shown = ", ".join(map(str, fidelities))
        raise ModelError(f"fidelities must be {len(model.networks)}, the checkpoint's levels, got {shown}")
    networks = (model.networks[0], *(_without_self_energies(model, network) for network in model.networks[1:]))
    biases = any(network.biases for network in networks)
    if biases:
        networks = tuple(map(_with_biases, networks))
    shapes = [[tuple(weight.shape[1:]) for weight in network.weights] for network in networks]
    try:
        config = ModelConfig(
            aev=aev,
            neurons=tuple(width for width, _ in shapes[0]),
            activations=model.activations,
            biases=biases,
            pass_aev=model.pass_aev,
            pass_energy=model.pass_energy,
            sum_levels=model.sum_levels,
            fidelities=fidelities,
            baseline=baseline,
        )
    except ValidationError as error:
        raise ModelError(f"the checkpoint's networks cannot be used: {error.errors()[0]['msg']}") from None
    for level, found in enumerate(shapes):
        expected = [(out, into) for into, out in pairwise((input_length(config, level), *config.neurons))]
        if found != expected:
            raise ModelError(f"layers of level {level} must be {_arrows(expected)}, got {_arrows(found)}; train anew")
    above = [model.self_energies * model.sum_levels] * (len(networks) - 1)
    return config, Params(networks, torch.stack([model.self_energies, *above]))


def _without_self_energies(model: PyKinMLModel, high: Networks) -> Networks:
    """The high level's networks, for an energy from below that lacks the self energies.

    PyKinML hands up e + SAE, and we hand up e: w·(aev, e + SAE) + b = w·(aev, e) + (b + w_e SAE).
    """
    if not model.pass_energy or not model.self_energies.any():
        return high
    high = _with_biases(high)
    weights_of_energy = high.weights[0][:, :, -1].double()
    first = high.biases[0] + weights_of_energy * model.self_energies.unsqueeze(1)
    return high._replace(biases=(first.to(high.biases[0].dtype), *high.biases[1:]))


def _with_biases(network: Networks) -> Networks:
    """The same networks; biases of zero where there were none."""
    if network.biases:
        return network
    return network._replace(biases=tuple(weight.new_zeros(weight.shape[:2]) for weight in network.weights))


def _arrows(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(f"{into} -> {out}" for out, into in shapes)


def _check_aev(model: PyKinMLModel, aev: AEVConfig) -> None:
    if len(aev.elements) != model.n_species:
        raise ModelError(
            f"elements must be {model.n_species}, one for each of the checkpoint's networks and in their order, got "
            f"{', '.join(aev.elements) or 'none'}"
        )
    if aev.length != model.aev_length:
        fitting = _fitting_sizes(model.n_species, model.aev_length, (aev.n_radial, aev.n_angular_radial, aev.n_angular))
        shown = " or ".join(",".join(map(str, sizes)) for sizes in fitting) or "none of the usual"
        raise ModelError(
            f"AEVs must be of length {model.aev_length}, as the checkpoint's networks were made for, got {aev.length} "
            f"of n_radial, n_angular_radial, n_angular {aev.n_radial},{aev.n_angular_radial},{aev.n_angular}; sizes "
            f"that fit: {shown}"
        )


def _fitting_sizes(n_species: int, length: int, given: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(n_radial, n_angular_radial, n_angular) of that AEV length, those that change least of `given` first."""
    pairs, most = n_species * (n_species + 1) // 2, length // n_species
    sizes = [
        (rest // n_species, shells, sections)
        for shells in range(1, most)
        for sections in range(1, most // shells + 1)
        if (rest := length - pairs * shells * sections) > 0 and rest % n_species == 0
    ]

    def change(size: tuple[int, int, int]) -> tuple[int, int]:
        differences = [abs(a - b) for a, b in zip(size, given, strict=True)]
        return sum(map(bool, differences)), sum(differences)

    return sorted(sizes, key=change)[:_MOST_SIZES]
