"""The settings of a run as the command line gives them: a file, and what is typed, which wins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pykinml_func.errors import ConfigError

if TYPE_CHECKING:
    from pykinml_func.config import RunConfig

ConfigFile = Annotated[
    list[Path] | None, typer.Argument(metavar="[CONFIG.toml]", help="Settings; options win over them.")
]


def typed_config(config: list[Path] | None, typed: dict[str, Any]) -> RunConfig:
    """Settings of the file, then those typed, which win. Raises ConfigError."""
    if config and len(config) > 1:
        raise ConfigError(
            f"one configuration file is taken, got {', '.join(map(str, config))}; quote globs (--input 'data/*.db') or "
            "repeat --input before each file, and separate lists by commas (--tvt 36,4,0)"
        )
    from pykinml_func.config.build import build_config
    from pykinml_func.config.toml import read_toml

    return build_config(typed, read_toml(config[0]) if config else {})


def resumed_config(run: Path, config: list[Path] | None, overwrite: bool, typed: dict[str, Any]) -> RunConfig:
    """Settings of the run in a directory, and those typed. Raises ConfigError."""
    if config or overwrite:
        given = config[0] if config else "--overwrite"
        raise ConfigError(f"resume takes its settings from {run}, got {given} too; leave one of them out")
    from pykinml_func.config import resume

    return resume.resumed_config(run, typed)
