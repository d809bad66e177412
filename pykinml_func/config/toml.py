"""Settings in TOML files, read and written."""

from __future__ import annotations

import difflib
import glob
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomlkit

from pykinml_func.config.aev import GRID_FIELDS, GRIDS
from pykinml_func.config.names import PATH_LISTS, SETTINGS, canonical
from pykinml_func.config.run import DERIVED, RunConfig
from pykinml_func.errors import ConfigError
from pykinml_func.files import write_atomically


def read_toml(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, flat, under the file's names.

    input, split_files and start_from are meant from the file's folder, other paths from where the command runs.
    Sections ([data], [model], [model.aev], [training]) are for the reader: a setting may stand in any, or at the top.
    Raises ConfigError for a file that cannot be read, another section, or a setting that stands in two places.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"SQLite format 3"):
            raise ConfigError(
                f"the configuration must be a TOML file, got {path}, a database; quote globs (--input 'data/*.db') or "
                "repeat --input before each database"
            )
        tree = tomllib.loads(content.decode("utf-8"))
    except FileNotFoundError:
        hint = "" if path.suffix == ".toml" else "; lists are separated by commas, as in --tvt 36,4,0"
        raise ConfigError(f"no configuration file {path}{hint}") from None
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be TOML: {error}") from None
    given: dict[str, Any] = {}
    places: dict[str, str] = {}
    for section, key, value in _leaves(tree, path):
        place = f"in [{'.'.join(section)}]" if section else "at the top"
        if key in given:
            raise ConfigError(f"{path} sets {key} {places[key]} and {place}; keep one of them")
        given[key], places[key] = value, place
    flat = canonical(given)
    for name in PATH_LISTS:
        if name in flat and isinstance(flat[name].value, list):
            resolve = _from_folder if name == "input" else _beside
            given[flat[name].name] = [resolve(path.parent, str(entry)) for entry in flat[name].value]
    if "start_from" in flat and isinstance(flat["start_from"].value, str):
        given[flat["start_from"].name] = _beside(path.parent, flat["start_from"].value)
    return given


def _leaves(
    tree: Mapping[str, Any], path: Path, section: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Section, name and value of each setting."""
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            yield section, key, value
            continue
        inner = (*section, key)
        if inner not in {setting.section for setting in SETTINGS.values()}:
            name, names = ".".join(inner), sorted({".".join(setting.section) for setting in SETTINGS.values()})
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"the sections are [{'], ['.join(names)}]"
            raise ConfigError(f"unknown section [{name}] in {path}; {hint}")
        yield from _leaves(value, path, inner)


def _from_folder(folder: Path, pattern: str) -> str:
    """A path or glob that is meant from `folder`, whose own name is taken as it is."""
    literal = folder / pattern
    return str(literal if literal.is_file() else Path(glob.escape(str(folder))) / pattern)


def _beside(folder: Path, name: str) -> str:
    return str(folder / name)


def write_toml(path: Path, config: RunConfig) -> None:
    """Write every setting, so that `pykinml train PATH` runs the same again.

    Links are not followed, since a database's name is its formula. Grids that follow the rule are left out, so that
    they follow a cutoff or a count that is changed later.
    """
    tree = config.model_dump(mode="json", exclude_none=True)
    tree["data"] |= {
        "input": [_from_folder(Path.cwd(), pattern) for pattern in config.data.input],
        "split_files": [str(Path(name).absolute()) for name in config.data.split_files],
        "prepared": str(config.data.prepared.absolute()),
    }
    if config.training.start_from is not None:
        tree["training"]["start_from"] = str(config.training.start_from.absolute())
    own = config.model.aev.own_grids
    for name in {*GRID_FIELDS} - own | {count for count, grid in GRIDS.items() if grid in own}:
        del tree["model"]["aev"][name]
    for name in DERIVED:
        tree["model"].pop(name, None)
    for name in config.training.inapplicable():  # their defaults read as contradictions when they are given
        del tree["training"][name]
    text = tomlkit.dumps(tree)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
