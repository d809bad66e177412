"""`pykinml select`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pykinml_func.commands.checks import check_folder, check_own_output


def select(
    model: Annotated[Path, typer.Argument(help="A model.safetensors of `pykinml train --ensemble`.")],
    pool: Annotated[list[Path], typer.Argument(help="Structures: files that train reads, or any that ASE reads.")],
    number: Annotated[int, typer.Option("--number", "-n", help="How many to select.", min=1)] = 100,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write them as extxyz, or their ids as .txt. Without it ids are printed."),
    ] = None,
) -> None:
    """Select the structures of a pool that are most worth labelling next.

    Those that an ensemble is unsure of and that differ, in the order of choice; of copies one alone. Example: pykinml
    select run/model.safetensors pool.extxyz -n 50 -o next.extxyz
    """
    from pykinml_func.data.formats.sources import find_inputs
    from pykinml_func.inference.selection import select as selected
    from pykinml_func.inference.selection_files import check_selection, ids_of, read_pool, write_selection
    from pykinml_func.training.model_file import load_ensemble

    files = find_inputs([str(path) for path in pool])
    if output is not None:
        check_folder(output)
        check_selection(output)
        check_own_output(output, model, *files)
    ensemble, images = load_ensemble(model), read_pool(files)
    chosen = [images[place] for place in selected(ensemble, images, number)]
    if len(chosen) < number:
        told = f"the pool has only {len(chosen)} distinct structures; {number} were asked for"
        print(told, file=sys.stderr)
    if output is None:
        print("\n".join(ids_of(chosen)))
        return
    write_selection(output, chosen)
    print(f"wrote {output}: {len(chosen)} of {len(images)} structures")
