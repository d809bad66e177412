"""`pykinml split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pykinml_func.commands.checks import check_own_output
from pykinml_func.errors import ConfigError, ModelError


def split(
    ensemble: Annotated[Path, typer.Argument(metavar="ENSEMBLE.safetensors", help="A model file of several members.")],
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", file_okay=False, help="Where to write them; made if it is not there.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the members that are there.")] = False,
) -> None:
    """Write each member of an ensemble as a model of its own: member_0.safetensors, member_1.safetensors, ...

    A member keeps the ensemble's domain, not its calibration, which is of all members together. Example:
    pykinml split ensemble.safetensors members
    """
    from pykinml_func.report.ensembles import print_split
    from pykinml_func.training.model_file import load_ensemble, save_ensemble, split_ensemble

    found = load_ensemble(ensemble)
    if found.n_members == 1:
        raise ModelError(f"{ensemble} must hold several members to be split, got one; it is a model of its own already")
    paths = _member_paths(directory, found.n_members)
    _check_free(directory, paths, overwrite)
    for path in paths:
        check_own_output(path, ensemble)
    for path, member in zip(paths, split_ensemble(found), strict=True):
        save_ensemble(path, member)
    print_split(paths)


def _member_paths(directory: Path, n_members: int) -> list[Path]:
    """Names that sort as the members do."""
    width = len(str(n_members - 1))
    return [directory / f"member_{place:0{width}}.safetensors" for place in range(n_members)]


def _check_free(directory: Path, paths: list[Path], overwrite: bool) -> None:
    """Raises ConfigError where members of another ensemble would be lost, or be left among these."""
    there = set(directory.glob("member_*.safetensors"))
    if others := sorted(there - set(paths)):
        raise ConfigError(
            f"directory must be free of members of other ensembles, got {others[0]}; give another directory"
        )
    if there and not overwrite:
        raise ConfigError(
            f"directory must be free of members, and {min(there)} is there; give --overwrite to replace it"
        )
