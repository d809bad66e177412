"""`pykinml prepare`."""

from __future__ import annotations

from typing import Any

from pykinml_func.commands.run_config import ConfigFile, typed_config


def prepare(config: ConfigFile = None, *, settings: dict[str, Any]) -> None:
    """Read databases and write the prepared set (AEVs on disk) that `train` with the same settings then reuses."""
    run = typed_config(config, settings)
    from pykinml_func.report.console import ConsoleReporter
    from pykinml_func.training import fit

    with ConsoleReporter() as reporter:
        fit.prepare(run, reporter)
