"""`pykinml predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pykinml_func.commands.checks import check_folder, check_own_output
from pykinml_func.errors import ConfigError

if TYPE_CHECKING:
    from pykinml_func.config import ModelConfig
    from pykinml_func.inference.low_level import LowLevel


def predict(
    model: Annotated[Path, typer.Argument(help="A model.safetensors of `pykinml train`, of one model or several.")],
    inputs: Annotated[list[Path], typer.Argument(help="Structures: files that train reads, or any that ASE reads.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write structures and results as extxyz.")
    ] = None,
    low_level: Annotated[
        str | None,
        typer.Option(
            help="For a model of delta learning, what it is added to: a fidelity level of the input files, or a model "
            "file of that level. Without it the difference is predicted.",
            metavar="LEVEL|MODEL",
        ),
    ] = None,
) -> None:
    """Predict energies (eV) and forces (eV/Å) of structures."""
    from pykinml_func.data.formats.sources import read_structures
    from pykinml_func.inference.low_level import check_low_level, read_low_level
    from pykinml_func.inference.prediction_files import check_output, write_predictions
    from pykinml_func.inference.predictor import Predictor
    from pykinml_func.report.predictions import print_predictions

    if output is not None:
        check_folder(output)
        check_output(output)
        check_own_output(output, model, *inputs, Path(low_level or model))
    predictor, source = Predictor.load(model), None
    if low_level is not None:
        check_low_level(predictor.model_config, "attached")
        source = _low_level(low_level, predictor.model_config)
    if source == "attached":
        images = read_low_level(inputs, int(str(low_level)), predictor.model_config)
    else:
        images = read_structures(inputs)
    predictions = predictor.predict(images, low_level=source)
    if output is not None:
        write_predictions(output, images, predictions)
    print_predictions(images, predictions, output)


def _low_level(text: str, model: ModelConfig) -> LowLevel:
    """A number is a level of the input files, whose labels their structures carry; anything else a model file."""
    if text.isdecimal():
        return "attached"
    from pykinml_func.inference.calculator import PyKinMLCalculator

    calculator = PyKinMLCalculator(text)
    found = calculator.model_config
    if found.baseline is not None or found.fidelities[-1] != model.baseline:
        kind = "a difference of levels" if found.baseline is not None else f"of level {found.fidelities[-1]}"
        raise ConfigError(f"low_level must be a model of level {model.baseline}, got {text}, which is {kind}")
    return calculator
