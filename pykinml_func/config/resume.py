"""The settings under which a run that was cut short goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pykinml_func.config.build import build_config
from pykinml_func.config.names import canonical
from pykinml_func.config.run import RunConfig
from pykinml_func.config.toml import read_toml
from pykinml_func.errors import ConfigError

_HOW_LONG = ("epochs", "save_every")
_WHERE = ("device", "ranks", "fsdp", "ddp", "gpus", "prepared")
_HOW_FAST = ("threads", "workers", "compile", "valid_batch_size", "test_batch_size")
MAY_CHANGE = frozenset((*_HOW_LONG, *_WHERE, *_HOW_FAST))
"""Settings that may have other values on the way, since they do not decide what is found."""


def resumed_config(run: Path, typed: Mapping[str, Any]) -> RunConfig:
    """The settings of the run in a directory, with those typed that may change. Raises ConfigError."""
    file = run / "config.toml"
    if not file.is_file():
        raise ConfigError(f"resume must be the directory of a run, got {run} without a config.toml; name another one")
    fixed = sorted(canonical(typed).keys() - MAY_CHANGE)
    if fixed:
        raise ConfigError(
            f"resume goes on with the settings of {run}, and {', '.join(fixed)} cannot change on the way; leave it "
            "out, or begin a new run with --start-from"
        )
    return build_config({**typed, "output": str(run)}, read_toml(file))
