"""Configs from settings: which of two wins, what PyKinML's switches mean, what a refusal says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from pykinml_func.config.names import SETTINGS, SWITCHES, Given, canonical
from pykinml_func.config.run import RunConfig
from pykinml_func.errors import ConfigError, ContradictionError


def build_config(given: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> RunConfig:
    """A RunConfig from settings under our or PyKinML's names.

    `given` wins over `base` (a file's settings), also where two settings exclude each other: what `base` says is left
    out then. Raises ConfigError.
    """
    typed, file = canonical(given), canonical(base or {})
    while True:
        merged = file | typed
        try:
            return RunConfig.model_validate(_tree(_settle({name: each.value for name, each in merged.items()})))
        except ContradictionError as error:
            faults, messages = [error], [str(error)]
        except ValidationError as error:
            items = error.errors()
            causes = [item.get("ctx", {}).get("error") for item in items]
            faults = [cause for cause in causes if isinstance(cause, ContradictionError)]
            messages = [_explain(item) for item in items]
        settled = [fault for fault in faults if typed.keys() & {*fault.either, *fault.given}]
        outdone = {name for fault in settled for name in fault.either} & file.keys()
        if not outdone:
            raise ConfigError("\n".join(_in_your_words(message, typed, file) for message in messages))
        file = {name: each for name, each in file.items() if name not in outdone}


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        branch = tree
        for section in SETTINGS[name].section:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


def _settle(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with PyKinML's switches turned into settings, and without those that were emptied.

    Raises ContradictionError. `write_tvtmsk` changes nothing, since a run always writes its split.
    """
    ours = {name: value for name, value in values.items() if name not in SWITCHES}
    plain = {name: value for name, value in ours.items() if (value, SETTINGS[name].default) != (None, None)}
    start, load = plain.get("start_from"), values.get("load_model")
    if load and start is None:
        raise ContradictionError(
            "load_model needs load_model_name (start_from), the model to start from, got none; add it, or leave "
            "load_model out",
            either=("load_model",),
            given=("start_from",),
        )
    if load is False and start is not None:
        raise ContradictionError(
            f"load_model is off, and start_from contradicts it, got {start}; leave one of them out",
            either=("load_model", "start_from"),
        )
    if values.get("read_trid") is False and plain.get("split_files"):
        raise ContradictionError(
            "read_trid is off, and split_files contradicts it; leave one of them out",
            either=("read_trid", "split_files"),
        )
    return plain | _gpu(values.get("ddp"), values.get("gpus"), plain.get("device"))


def _gpu(ddp: bool | None, gpus: list[int] | None, device: str | None) -> dict[str, str]:
    """The device that PyKinML's `ddp` and `gpus` mean: a rank on each of these GPUs, which torchrun may count."""
    numbers = ", ".join(map(str, gpus or ()))
    if gpus and not ddp:
        raise ContradictionError(
            f"gpus needs ddp, got gpus {numbers} without; add ddp, or leave gpus out", either=("gpus",), given=("ddp",)
        )
    if gpus and device is not None:
        raise ContradictionError(
            f"device contradicts gpus, got {device} and {numbers}; leave one of them out",
            either=("device", "gpus"),
        )
    if not ddp:
        return {}
    if device is not None:
        raise ContradictionError(
            f"device contradicts ddp, got {device} and ddp on; leave one of them out", either=("device", "ddp")
        )
    return {"device": f"cuda:{','.join(map(str, gpus))}" if gpus else "cuda"}


_PLAIN_WORDS = {
    "tuple_type": "a list",
    "string_type": "text",
    "path_type": "a path",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
}
"""What pydantic's error types say in the words of a user."""


def _explain(item: Mapping[str, Any]) -> str:
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    name = next((str(part) for part in reversed(item["loc"]) if isinstance(part, str) and part in SETTINGS), "setting")
    if item["type"] in ("missing", "too_long"):
        message = f"{len(get_args(SETTINGS[name].annotation))} values"
    else:
        message = _PLAIN_WORDS.get(item["type"]) or item["msg"].removeprefix("Input should be ")
    return f"{name} must be {message}, got {item['input']!r}"


def _in_your_words(message: str, typed: Mapping[str, Given], file: Mapping[str, Given]) -> str:
    """The message with the user's own name beside ours, and where it stands, at the first mention of a setting."""
    notes = {}
    for name, given in {**file, **typed}.items():
        own = [] if given.name.replace("-", "_") == name else [f"your {given.name}"]
        place = ["in the file"] if typed and name not in typed else []
        if own or place:
            notes[name] = f"{name} ({', '.join([*own, *place])})"
    if not notes:
        return message
    return re.sub(rf"\b({'|'.join(notes)})\b", lambda found: notes.pop(found[0], found[0]), message)
