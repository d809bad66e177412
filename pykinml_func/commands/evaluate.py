"""`pykinml evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model.safetensors of `pykinml train`, of one model or several.")],
    data: Annotated[list[Path], typer.Argument(help="Labelled structures: files that train reads.")],
    split_files: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Take only the test structures (marked -1) of split files, such as the split.txt of a run; repeat it "
            "for several files.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Errors of a model on labelled structures, and whether the spread of an ensemble tells how large they are.

    By fidelity level, in kcal/mol and kcal/mol/Å; of delta learning, of the difference. Example: pykinml evaluate
    run/model.safetensors 'data/*.db' --split-files run/split.txt
    """
    from pykinml_func.inference.evaluation import evaluate as evaluated
    from pykinml_func.inference.evaluation import read_labels
    from pykinml_func.inference.predictor import Predictor
    from pykinml_func.report.evaluation import evaluation_json, print_evaluation

    predictor = Predictor.load(model)
    found = evaluated(predictor, read_labels(predictor.model_config, data, split_files or ()))
    if json:
        print(evaluation_json(found, model, data))
    else:
        print_evaluation(found, model, data)
