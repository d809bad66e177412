"""The command `pykinml` as the tests call it: in this process, with what it printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from pykinml_func.cli import main

SMALL = ["--n-radial", "4", "--n-angular-radial", "2", "--n-angular", "2"]
SMALL += ["--neurons", "5,3,1", "--activations", "tanh,gaussian,identity", "--compile", "off", "--threads", "1"]


class Ended(NamedTuple):
    code: object
    out: str
    err: str


Run = Callable[..., Ended]


def flat(text: str) -> str:
    """Without line breaks and frames, so that a wrapped sentence is found."""
    return re.sub(r"[\s│]+", " ", text)


def call(*arguments: object) -> None:
    """`main` as the command calls it. A traceback of ours would come out of it as an exception."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pykinml", *map(str, arguments)])
        main()


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """The exit code of the command, and what it printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        call(*arguments)
    return Ended(left.value.code, *capsys.readouterr())
