"""What the benchmarks' options must be: looked at before anything is measured, so that no figures are lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

PYKINML = str(Path(sys.executable).with_name("pykinml"))
"""The command that is installed beside this Python."""


def check_data(folder: Path) -> Path:
    """The folder, which must hold what is measured on. Raises BadParameter."""
    missing = [name for name in ("C5H5.db", "sample_tvt.txt") if not (folder / name).is_file()]
    if missing:
        raise typer.BadParameter(
            f"must be a folder with C5H5.db and sample_tvt.txt of PyKinML's example data, got {folder} without "
            f"{' and '.join(missing)}"
        )
    return folder


def check_file(path: Path | None) -> Path | None:
    """The path that figures are written to, a file in a folder that is there. Raises BadParameter."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(
            f"must be a file in a folder that is there, got {path}; name a file, and make its folder first"
        )
    return path


def check_command() -> None:
    """Raises BadParameter where the command is not installed."""
    if not Path(PYKINML).is_file():
        raise typer.BadParameter(f"pykinml must be installed beside {sys.executable}; pip install -e . first")


ExampleData = Annotated[Path, typer.Option(help="directory of C5H5.db and sample_tvt.txt", callback=check_data)]
JsonFile = Annotated[Path | None, typer.Option("--json", help="write the figures here", callback=check_file)]
