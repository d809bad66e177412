"""What `pykinml convert` asks and prints: what a checkpoint of PyKinML lacks, and the model that was made."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from pathlib import Path

import typer

from pykinml_func.config import ModelConfig
from pykinml_func.config.names import SETTINGS, shown
from pykinml_func.errors import ConfigError
from pykinml_func.types import Params

_LABEL_WIDTH = 12

_NOT_IN_A_CHECKPOINT = ("radial_cutoff", "angular_cutoff", "n_radial", "n_angular_radial", "n_angular", "beta")

_PYKINML_DEFAULTS = {"elements": "C,H"} | {name: shown(SETTINGS[name].default) for name in _NOT_IN_A_CHECKPOINT}
"""What PyKinML takes for each setting that its checkpoints do not hold, as the command line takes it."""


def settings_not_in_checkpoint(given: Container[str], defaults: bool) -> dict[str, str]:
    """The settings that no checkpoint holds and that are not in `given`: PyKinML's defaults where `defaults` is set,
    else what is answered on the terminal.

    Raises ConfigError where there is no terminal.
    """
    missing = {name: value for name, value in _PYKINML_DEFAULTS.items() if name not in given}
    if defaults or not missing:
        return missing
    if not sys.stdin.isatty():
        typed = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in missing.items())
        raise ConfigError(
            f"a checkpoint of PyKinML does not hold {', '.join(missing)}; give them, or --defaults for PyKinML's "
            f"defaults: {typed}"
        )
    print("Not in the checkpoint, so as in its training (in brackets: PyKinML's default):")
    questions = {name: SETTINGS[name].description.partition(";")[0] for name in missing}
    return {name: typer.prompt(questions[name], default=value) for name, value in missing.items()}


def print_conversion(checkpoint: Path, output: Path, model_config: ModelConfig, params: Params) -> None:
    """Print what became of `checkpoint`, and what was taken for the AEVs, which it does not hold."""
    print(f"converted {checkpoint} to {output}")
    for label, value in _facts(model_config, params):
        print(f"{label:{_LABEL_WIDTH}}{value}")


def _facts(model: ModelConfig, params: Params) -> Iterator[tuple[str, str]]:
    aev, precision = model.aev, str(params.networks[0].weights[0].dtype).removeprefix("torch.")
    for level, network in zip(model.fidelities, params.networks, strict=True):
        widths = " -> ".join(map(str, (network.weights[0].shape[2], *model.neurons)))
        biases = "with biases" if model.biases else "no biases"
        facts = f"{', '.join(aev.elements)}: {widths}, {', '.join(model.activations)}, {biases}, {precision}"
        yield "networks", f"level {level}, {facts}"
    if model.baseline is not None:
        yield "delta", f"level {model.fidelities[0]} less level {model.baseline}"
    for level, energies in zip(model.fidelities, params.self_energies.tolist(), strict=True):
        values = (f"{element} {value:.6f} eV" for element, value in zip(aev.elements, energies, strict=True))
        yield "SAEs", f"level {level}, {', '.join(values)}"
    sizes = f"{aev.n_radial},{aev.n_angular_radial},{aev.n_angular}"
    yield "AEVs", f"cutoffs {aev.radial_cutoff} and {aev.angular_cutoff} Å, sizes {sizes}, beta {aev.beta}"
    yield (
        "",
        "The checkpoint holds no element order and nothing of the AEVs: if these are not those that it was trained",
    )
    yield "", "with, its energies are wrong."
