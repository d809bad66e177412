"""What commands check of the files that they are to write, before any work is done."""

from __future__ import annotations

from pathlib import Path

from pykinml_func.errors import ConfigError


def check_own_output(output: Path, *read: Path) -> None:
    """Raises ConfigError where `output` is a file that is read."""
    if output.resolve() in {path.resolve() for path in read}:
        raise ConfigError(f"output must differ from what is read, got {output}; give another name")


def check_folder(output: Path) -> None:
    """Raises ConfigError where the folder of `output` is not there."""
    if not output.parent.is_dir():
        raise ConfigError(f"output must go to a directory that is there, got {output}; make {output.parent} first")


def check_new_model(path: Path, overwrite: bool) -> None:
    """Raises ConfigError where no model can be written to `path`."""
    if path.suffix != ".safetensors":
        raise ConfigError(f"output must end in .safetensors, got {path}; give {path.with_suffix('.safetensors')}")
    check_folder(path)
    if path.exists() and not overwrite:
        raise ConfigError(f"output must be a new file, and {path} is there; give --overwrite to replace it")
