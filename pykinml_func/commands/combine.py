"""`pykinml combine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pykinml_func.commands.checks import check_new_model, check_own_output
from pykinml_func.errors import ModelError


def combine(
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The ensemble to write.")],
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Models of the same settings, or ensembles of such.")
    ],
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Labelled structures that no model was trained on: fit the calibration of the spread to them. Repeat "
            "it for several files, or quote a glob.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Make one ensemble of models that were trained apart, its members in the order given.

    The domain (where the models were trained) is kept if all have the same one; a calibration is of the members
    together, so a new one needs labels. Example: pykinml combine ensemble.safetensors runs/*/model.safetensors
    """
    check_new_model(output, overwrite)
    check_own_output(output, *models, *(calibrate or ()))
    from pykinml_func.report.ensembles import print_combined
    from pykinml_func.training.model_file import join_ensembles, load_ensemble, save_ensemble

    ensemble = join_ensembles([load_ensemble(path) for path in models], [str(path) for path in models])
    if ensemble.n_members == 1:
        raise ModelError(f"an ensemble must have at least two members, got {models[0]} alone; name more models")
    if calibrate:
        from pykinml_func.inference.evaluation import read_labels
        from pykinml_func.inference.recalibration import fit_calibration

        labels = read_labels(ensemble.model_config, calibrate)
        ensemble = ensemble._replace(calibration=fit_calibration(ensemble, labels))
    save_ensemble(output, ensemble)
    print_combined(output, ensemble)
