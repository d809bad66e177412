"""What a prepared set says of itself, and whether that is what is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pykinml_func.config.aev import AEVConfig
from pykinml_func.config.data import DataConfig
from pykinml_func.errors import ConfigError, DataError

FORMAT = 4
MANIFEST = "manifest.json"


class Manifest(NamedTuple):
    """The contents of a set's manifest."""

    made_by: dict[str, Any]
    """all that decides what is in the set, and so names it"""
    aev: AEVConfig
    """the settings of its AEVs, elements filled in"""
    checksums: dict[str, int]
    sources: tuple[str, ...]
    """a line on each input file"""

    @property
    def backend(self) -> str:
        """native or aevmod."""
        return str(self.made_by["backend"]).split(maxsplit=1)[0]

    @property
    def summary(self) -> str:
        """What is in the set, in a few words."""
        names = list(self.made_by["inputs"])
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"{shown}; levels {_shown(self.made_by['levels'])}; {self.backend}, {self.made_by['precision']}"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write it into the set's directory."""
    content = manifest._asdict() | {"aev": manifest.aev.model_dump(mode="json")}
    (directory / MANIFEST).write_text(json.dumps(content, indent=1))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the set in `directory`. Raises DataError where it is none of ours."""
    path = directory / MANIFEST
    try:
        found = json.loads(path.read_text())
        if found["made_by"]["format"] != FORMAT:
            raise DataError(f"{directory} was prepared by another version of pykinml; prepare it again")
        manifest = Manifest(found["made_by"], AEVConfig(**found["aev"]), found["checksums"], tuple(found["sources"]))
        _ = manifest.summary
    except DataError:
        raise
    except (ValueError, KeyError, TypeError):
        raise corrupted(path) from None
    return manifest


def corrupted(path: Path) -> DataError:
    """The error of a file of a set that is not as it was written."""
    return DataError(f"{path} is not what was written there; delete {path.parent} and run again")


def find_set(directory: Path) -> Path:
    """The one prepared set that `directory` is or holds. Raises DataError for none or several."""
    if (directory / MANIFEST).exists():
        return directory
    sets = sorted(path.parent for path in directory.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))
    if not sets:
        raise DataError(
            f"pre_saved needs a prepared set in {directory}, got none; make one with `pykinml prepare`, or name its "
            "directory with --prepared"
        )
    if len(sets) > 1:
        listed = "; ".join(f"{path} ({_summary(path)})" for path in sets)
        raise DataError(
            f"pre_saved needs one prepared set, got {len(sets)}: {listed}; name one of these directories with "
            "--prepared"
        )
    return sets[0]


def _summary(directory: Path) -> str:
    try:
        return read_manifest(directory).summary
    except DataError as error:
        return str(error)


def data_config_of_set(data: DataConfig, aev: AEVConfig, manifest: Manifest, path: Path) -> DataConfig:
    """`data` with all that the set at `path` decides, and that path, so that a rerun finds it among others too.

    Raises ConfigError where the user gave another value for some of it.
    """
    made_by, given = manifest.made_by, data.model_fields_set
    fidelity = data.fidelity if "fidelity" in given else made_by["levels"][-1]
    asked = (*data.low_fidelity, fidelity)
    if len(set(asked)) < len(asked) or not set(asked) <= set(made_by["levels"]):
        raise _contradiction("the levels of fidelity and low_fidelity", asked, made_by["levels"], path)
    found = {
        "names": tuple(made_by["names"]),
        "temperature": made_by["temperature"],
        "aev_backend": manifest.backend,
    }
    for name in sorted(given & set(found)):
        value = tuple(sorted(data.names)) if name == "names" else getattr(data, name)
        if value != found[name]:
            raise _contradiction(name, value, found[name], path)
    for name in sorted(aev.given):
        if getattr(aev, name) != getattr(manifest.aev, name):
            raise _contradiction(name, getattr(aev, name), getattr(manifest.aev, name), path)
    return data.model_copy(update={"fidelity": fidelity, "prepared": path, **found})


def _contradiction(name: str, asked: object, found: object, path: Path) -> ConfigError:
    return ConfigError(
        f"{name} must be among what the prepared set holds, got {_shown(asked)}, and {path} has {_shown(found)}; leave "
        "it out, or prepare such a set"
    )


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "any"
    return "any" if value is None else str(value)
