"""When a step is compiled, and where the compiled code is kept."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from platformdirs import user_cache_path
from torch.utils._pytree import tree_leaves

from pykinml_func.errors import ConfigError

_COMPILE_SECONDS = 45.0
"""What a cold compile of a training and an evaluation step costs on two cores, with some margin
(bench/results/training.json).
"""

_DEFAULT_COMPILER = "clang++" if sys.platform == "darwin" else "g++"
"""What torch looks for where CXX names none."""

_MOST_SHAPES = 128
"""Batches of mixed sizes can meet more shapes than torch's default limit of 8, past which it refuses to run."""

_SAVED_SECONDS: dict[str | None, tuple[float, float]] = {
    None: (2e-3, 0.0),
    "jacobian": (0.0, 0.0),
    "positions": (2e-3, 5e-5),
}
"""Seconds that a compiled step saves on one core, a step and an atom, by force path (None: energies alone)."""


def repays_compilation(mode: Literal["auto", "on", "off"], force_path: str | None, steps: int, atoms: float) -> bool:
    """Whether a run compiles its steps; `auto` asks whether it saves more time than it costs.

    steps: training steps of the run; atoms: atoms of one batch. The answer depends on nothing that is measured, so
    that a run can be repeated bit for bit. Raises ConfigError as `check_compiler`.
    """
    if mode != "auto":
        check_compiler(mode)
        return mode == "on"
    a_step, an_atom = _SAVED_SECONDS[force_path]
    return _compiler() is not None and steps * (a_step + an_atom * atoms) > _COMPILE_SECONDS


def check_compiler(mode: Literal["auto", "on", "off"]) -> None:
    """Raises ConfigError where compilation is asked for and there is no C++ compiler."""
    if mode == "on" and _compiler() is None:
        raise ConfigError(
            f"compile = on needs a C++ compiler, and none was found; install {_DEFAULT_COMPILER} (or name another in "
            "the environment variable CXX), or set compile = off"
        )


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or _DEFAULT_COMPILER)


class CompiledStep:
    """A step under torch.compile, one graph a shape; `shapes` tells how many it met."""

    def __init__(self, step: Callable[..., Any]) -> None:
        """The compiled code is kept in the user's cache directory (or TORCHINDUCTOR_CACHE_DIR), for later runs."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("pykinml-func") / "inductor"))
        limits: dict[str, Any] = {
            "recompile_limit": _MOST_SHAPES,
            "isolate_recompiles": True,
        }  # not in torch's stubs
        self._step = torch.compile(step, fullgraph=True, dynamic=False, **limits)
        self._signatures: set[tuple[torch.Size, ...]] = set()

    def __call__(self, *arguments: Any) -> Any:
        """Run the step."""
        self._signatures.add(tuple(leaf.shape for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)))
        return self._step(*arguments)

    @property
    def shapes(self) -> int:
        """Different shapes so far, each of which was compiled once."""
        return len(self._signatures)
