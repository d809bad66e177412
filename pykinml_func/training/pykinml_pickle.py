"""The pickle of a PyKinML checkpoint (`.pt`), read without importing or calling anything that it names.

PyKinML pickles whole optimizers, schedulers and activation functions. torch's weights_only loader reads the file, and
what is no tensor comes back as an inert stand-in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pykinml_func.errors import ModelError

_STOOD_IN = (
    r"torch\.optim\..+",
    r"torch\.nn\.modules\.activation\..+",
    r"torch\._C\._VariableFunctionsClass|builtins\.getattr",  # torch.tanh is pickled as getattr(that class, "tanh")
    r"pykinml\.nnpes\..+",
    r"numpy\.(_core|core)\.multiarray\.(_reconstruct|scalar)|numpy\.(ndarray|dtype)",
    r"builtins\.(dict|bytes)|collections\.defaultdict",
)
"""Names that a checkpoint of PyKinML may hold, as patterns. None is looked up: each gets a stand-in."""

_NUMBER = re.compile(r"[fiu][248]")
"""numpy's names of the numbers that an array may hold"""


class StandIn:
    """What a pickle gives to a class or function, kept and not used; one subclass a name, which may occur uncalled."""

    name = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Self:
        """Keeps the arguments of the call."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, ()
        return made

    def __setstate__(self, state: Any) -> None:
        """Keeps the state."""
        self.state = state


def read_pickle(path: Path) -> Any:
    """The content of a file of torch.save: tensors, containers, text, numbers and stand-ins.

    Raises ModelError for another kind of file, and for one that names what PyKinML does not save.
    """
    damaged = f"{path} must be a checkpoint of PyKinML (.pt, written by torch.save), got another or a damaged file"
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # torch raises whatever a damaged file makes it meet
        raise ModelError(f"{damaged} ({type(error).__name__})") from None
    foreign = sorted(name for name in names if not any(re.fullmatch(known, name) for known in _STOOD_IN))
    if foreign:
        raise ModelError(
            f"{path} names {', '.join(foreign)}, and a checkpoint of PyKinML needs no such thing; nothing of it was "
            "run, and it is not converted: it may be harmful"
        )
    stand_ins: list[Any] = [(_stand_in(name), name) for name in names]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{damaged} ({type(error).__name__})") from None


def _stand_in(name: str) -> Any:
    return _empty_dict if name == "collections.defaultdict" else type("Named", (StandIn,), {"name": name})


def _empty_dict(*_: Any) -> dict[Any, Any]:
    """For a defaultdict: the loader sets items in a dict alone."""
    return {}


def numbers_of(value: Any) -> list[float]:
    """The numbers of a list, a tensor or a stand-in for a numpy array, flat. Raises ModelError for what holds none."""
    if isinstance(value, int | float):
        return [float(value)]
    if isinstance(value, Tensor):
        return [float(number) for number in value.double().flatten()]
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers_of(item)]
    try:
        dtype, data = value.arguments if value.name.endswith(".scalar") else (value.state[2], value.state[4])
        if not _NUMBER.fullmatch(dtype.arguments[0]):
            raise TypeError(f"numbers of type {dtype.arguments[0]!r}")
        return [float(number) for number in np.frombuffer(data, dtype.state[1] + dtype.arguments[0])]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"numbers must be a list, a tensor or an array, got {type(value).__name__}: {error}") from None
