"""The names of settings, ours and PyKinML's.

Each setting has one name, unique in all sections. `ALIASES` are PyKinML's names for our settings, `SWITCHES` its
arguments that say something about a setting of ours without being its value (`build` translates them).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel

from pykinml_func.config.run import DERIVED, RunConfig
from pykinml_func.errors import ConfigError


class Setting(NamedTuple):
    """One setting as the command line and TOML see it."""

    name: str
    section: tuple[str, ...]
    """such as ('model', 'aev')"""
    description: str
    default: Any
    annotation: Any


class Given(NamedTuple):
    """A value, and the name that the user gave it under."""

    value: Any
    name: str


def settings(model: type[BaseModel] = RunConfig, section: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting of `model`, in the order of the classes."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, (*section, name))
        elif name not in DERIVED:
            yield Setting(name, section, field.description or "", field.default, field.annotation)


SETTINGS: dict[str, Setting] = {setting.name: setting for setting in settings()}

ALIASES: dict[str, tuple[str, ...]] = {
    "input_data_fname": ("input",),
    "input_data_type": ("input_type",),
    "fidlevel": ("fidelity",),
    "fidlevel_lf": ("low_fidelity",),
    "multi_fid": ("multi_fidelity",),
    "nameset": ("names",),
    "temp": ("temperature",),
    "trtsid_name": ("split_files",),
    "tvt": ("split",),
    "sae_fit": ("fit_self_energies",),
    "data_path": ("prepared",),
    "present_elements": ("elements",),
    "aev_params": ("n_radial", "n_angular_radial", "n_angular"),
    "cuttoff_radius": ("radial_cutoff", "angular_cutoff"),
    "my_neurons": ("neurons",),
    "my_actfn": ("activations",),
    "pass_eng": ("pass_energy",),
    "dscr": ("sum_levels",),
    "tr_batch_size": ("batch_size",),
    "vl_batch_size": ("valid_batch_size",),
    "ts_batch_size": ("test_batch_size",),
    "lrscheduler": ("schedule",),
    "LR_patience": ("patience",),
    "LR_threshold": ("threshold",),
    "decayrate": ("decay",),
    "stepsize": ("step_size",),
    "floss": ("forces",),
    "fw": ("force_weight",),
    "optimize_force_weight": ("learn_loss_weights",),
    "load_model_name": ("start_from",),
    "randomseed": ("seeds",),
    "num_cores": ("threads",),
    "savenm": ("output",),
}
"""PyKinML's names for our settings; a name of several takes a list, one value for each."""

SWITCHES: dict[str, str] = {
    "no_biases": "biases",
    "load_model": "start_from",
    "read_trid": "split_files",
    "write_tvtmsk": "output",
    "ddp": "device",
    "gpus": "device",
}
"""PyKinML's arguments that need translating, and the setting that each is about. All but gpus are true or false."""

PATH_LISTS = ("input", "split_files")
"""Lists of paths and globs, which are never cut at commas."""

_ONE_IN_A_LIST = ("optimizer", "schedule", "start_from", "output")
"""What PyKinML's parser makes a list of one."""


_BY_LOWER_NAME = {name.lower(): names for name, names in ALIASES.items()}


def canonical(given: Mapping[str, Any]) -> dict[str, Given]:
    """`given` under our names, and PyKinML's for `SWITCHES`. Raises ConfigError for an unknown name or a setting that
    is given twice.
    """
    resolved: dict[str, Given] = {}
    for key, value in given.items():
        for name, each in _named(key, value):
            if name in resolved:
                raise ConfigError(f"{resolved[name].name} and {key} set the same thing ({name}); give one of them")
            resolved[name] = Given(each, key)
    return resolved


def _named(key: str, value: Any) -> list[tuple[str, Any]]:
    """The settings that one name of the user's stands for, with their values."""
    name = key.replace("-", "_")
    switch = name.lower()
    if switch == "gpus":
        return [(switch, _device_numbers(key, value))]
    if switch in SWITCHES:
        if not isinstance(value, bool):
            raise ConfigError(f"{key} must be true or false, got {value!r}")
        return [("biases", not value)] if switch == "no_biases" else [(switch, value)]
    targets = (name,) if name in SETTINGS else _BY_LOWER_NAME.get(name.lower(), ())
    if not targets:
        known = difflib.get_close_matches(name, [*SETTINGS, *ALIASES, *SWITCHES], n=1)
        hint = f"; did you mean {known[0]}?" if known else "; `pykinml train --help` lists them"
        raise ConfigError(f"unknown setting {key!r}{hint}")
    if len(targets) == 1:
        return [(targets[0], _value(targets[0], key, value))]
    values = _cut(value)
    if not isinstance(values, tuple | list) or len(values) != len(targets):
        raise ConfigError(f"{key} must be {len(targets)} values ({', '.join(targets)}), got {value!r}")
    return list(zip(targets, values, strict=True))


def _value(name: str, key: str, value: Any) -> Any:
    """Empty text means nothing where nothing is a choice; other text for a list is cut at its commas."""
    default = SETTINGS[name].default
    if value in ("", [""]):
        if default not in (None, ()):
            raise ConfigError(f"{key} must not be empty; leave it out for the default, {shown(default)}")
        return default
    if name in _ONE_IN_A_LIST and isinstance(value, tuple | list) and len(value) == 1:
        return value[0]
    if not isinstance(value, str) or get_origin(SETTINGS[name].annotation) is not tuple:
        return value
    return [value] if name in PATH_LISTS else _cut(value)


def _cut(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _device_numbers(key: str, value: Any) -> list[int]:
    listed = _cut(value) if isinstance(value, str | tuple | list) else [value]
    texts = [str(each) for each in listed]
    if not texts or not all(text.isdecimal() for text in texts):
        raise ConfigError(f"{key} must be the number of a GPU, such as 0, got {value!r}")
    return [int(text) for text in texts]


def shown(default: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
