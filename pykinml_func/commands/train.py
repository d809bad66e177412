"""`pykinml train`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pykinml_func.commands.exits import INTERRUPTED, RESUME_ME, is_first
from pykinml_func.commands.run_config import ConfigFile, resumed_config, typed_config
from pykinml_func.launch import is_launched, launch


def train(
    config: ConfigFile = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run that is in the output directory.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with the run in this directory, under its own settings, as if it had not been cut short.",
        ),
    ] = None,
    *,
    settings: dict[str, Any],
) -> None:
    """Train a potential and write its run directory: model, metrics, split, checkpoints, figures.

    Lists are separated by commas (--tvt 36,4,0); names take dashes or underscores; --input is repeated or a quoted
    glob. Example: pykinml train --input 'data/*.db' --forces --epochs 300 --output runs/first. SIGTERM and SIGUSR1 save
    a checkpoint and end the run with exit code 75: it can be resumed.
    """
    run = typed_config(config, settings) if resume is None else resumed_config(resume, config, overwrite, settings)
    if run.training.ranks > 1 and not is_launched():
        raise typer.Exit(launch(sys.argv[1:], run.training.ranks))
    from pykinml_func.report.console import ConsoleReporter
    from pykinml_func.training.fit import fit

    with ConsoleReporter() as reporter:
        result = fit(run, reporter, overwrite, resume is not None)
    if result.stopped_by == signal.SIGINT:
        if is_first("RANK"):
            raise KeyboardInterrupt
        raise typer.Exit(INTERRUPTED)
    if result.stopped_by:
        if is_first("RANK"):
            name = signal.Signals(result.stopped_by).name
            print(f"stopped by {name}; go on with: pykinml train --resume {result.directory}", file=sys.stderr)
        raise typer.Exit(RESUME_ME)
