"""`pykinml convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pykinml_func.commands.checks import check_new_model

CONVERT_SETTINGS: tuple[str, ...] = ("elements", "radial_cutoff", "angular_cutoff", "n_radial", "n_angular_radial")
CONVERT_SETTINGS += ("n_angular", "beta", "fidelity", "low_fidelity", "delta")


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="OLD.pt", help="A checkpoint of PyKinML.")],
    output: Annotated[Path, typer.Argument(metavar="NEW.safetensors", help="The model to write.")],
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Take PyKinML's defaults for what is not given, and ask nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Turn a checkpoint of PyKinML, single or multi-fidelity, into a model for `pykinml predict`.

    No code of the checkpoint is run. It holds neither the order of the elements nor the cutoffs, sizes and beta of its
    AEVs: those that are not given are asked for. --fidelity and --low-fidelity number its levels; --delta says that it
    was trained with delta. Example: pykinml convert model-0009.pt c5h5.safetensors --elements C,H
    """
    check_new_model(output, overwrite)
    from pykinml_func.config.build import build_config
    from pykinml_func.config.names import canonical
    from pykinml_func.report.conversion import print_conversion, settings_not_in_checkpoint
    from pykinml_func.training.model_file import save_model
    from pykinml_func.training.pykinml_checkpoint import convert_pykinml, read_pykinml_checkpoint

    given = canonical(settings)
    old = read_pykinml_checkpoint(checkpoint)
    levels: dict[str, Any] = {"multi_fidelity": True} if len(old.networks) > 1 else {}
    if levels and "low_fidelity" not in given:
        levels["low_fidelity"] = 0
    config = build_config(settings | levels | settings_not_in_checkpoint(given, defaults))
    model_config, params = convert_pykinml(old, config.model.aev, config.data.fidelities, config.data.baseline)
    save_model(output, model_config, params)
    print_conversion(checkpoint, output, model_config, params)
