"""How a step is run: recorded once a shape as a list of torch operations, which torch.compile may take further."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pykinml_func.errors import ConfigError
from pykinml_func.training.graphs import Recorder, plain_function, simplified

_DEFAULT_COMPILER = "clang++" if sys.platform == "darwin" else "g++"
"""What torch looks for where CXX names none."""

_COMPILED_STEPS = 25_000
"""Steps after which torch.compile has saved what it costs: some 22 s, or 5 s where an earlier run left its code, for
0.7 ms a step to energies or to forces. With Jacobians from memory, compiled steps take twice as long.
"""

_EAGER_CALLS = 40
"""Calls with one shape before it is recorded. That takes as much time as thirty (Adam) to a hundred (SOAP) recorded
calls save: too much for a shape that comes a few times; one that has come so often mostly comes often enough again.
"""

_Signature = tuple[TreeSpec, tuple[tuple[torch.Size, torch.dtype] | None, ...]]


def repays_compilation(mode: Literal["auto", "on", "off"], jacobians: bool, steps: int) -> bool:
    """Whether a run of so many training steps compiles them; `auto` asks whether that saves more time than it costs.
    jacobians: whether forces take those of AEVs from memory.

    The answer depends on nothing that is measured, so that a run can be repeated bit for bit. Raises ConfigError as
    `check_compiler`.
    """
    if mode != "auto":
        check_compiler(mode)
        return mode == "on"
    return _compiler() is not None and not jacobians and steps > _COMPILED_STEPS


def check_compiler(mode: Literal["auto", "on", "off"]) -> None:
    """Raises ConfigError where compilation is asked for and there is no C++ compiler."""
    if mode == "on" and _compiler() is None:
        raise ConfigError(
            f"compile = on needs a C++ compiler, and none was found; install {_DEFAULT_COMPILER} (or name another in "
            "the environment variable CXX), or set compile = off"
        )


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or _DEFAULT_COMPILER)


class RecordedStep:
    """A pure function of pytrees of tensors, of one structure each; shapes that come often are recorded.

    A recorded step is the list of torch operations that the function comes down to once grad, vjp and vmap have done
    their work: the same operations on the same numbers, without the transforms' overhead, which is most of the time of
    a small step. What is not a tensor must be the same in every call.
    """

    def __init__(self, step: Callable[..., Any], compiled: bool = False, eager_calls: int = _EAGER_CALLS) -> None:
        """compiled: whether recorded steps are handed to torch.compile, at the first call with a shape; the code is
        kept in the user's cache directory (or TORCHINDUCTOR_CACHE_DIR), for later runs.
        """
        self._step, self._compiled = step, compiled
        self._eager_calls = 0 if compiled else eager_calls
        self._calls: Counter[_Signature] = Counter()
        self._recorded: dict[_Signature, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run the step."""
        leaves, structure = tree_flatten(arguments)
        shapes = (None if leaf is None else (leaf.shape, leaf.dtype) for leaf in leaves)
        signature = structure, tuple(shapes)
        recorded = self._recorded.get(signature)
        if recorded is None:
            if self._calls[signature] < self._eager_calls:
                self._calls[signature] += 1
                return self._step(*arguments)
            recorded = self._recorded[signature] = self._record(leaves, structure)
        with torch.no_grad():
            return recorded(*leaves)

    @property
    def shapes(self) -> int:
        """Different shapes that were recorded."""
        return len(self._recorded)

    def _record(self, leaves: list[Any], structure: TreeSpec) -> Callable[..., Any]:
        """The step for the shapes of `leaves`, as a function of leaves."""
        # two arguments that are one tensor now may be two in the next call
        leaves = [leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        recorder = Recorder(leaves)
        with recorder, torch.no_grad():
            results, found = tree_flatten(self._step(*tree_unflatten(leaves, structure)))
        graph = simplified(recorder.graph_of(results))
        run = _compile(graph) if self._compiled else plain_function(graph)
        return lambda *leaves: tree_unflatten(run(*leaves), found)


def _compile(graph: Callable[..., Any]) -> Callable[..., Any]:
    from platformdirs import user_cache_path

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("pykinml-func") / "inductor"))
    # each shape is a graph of its own, which counts as none of another's
    isolated: dict[str, Any] = {"isolate_recompiles": True}  # not in torch's stubs
    return torch.compile(graph, fullgraph=True, dynamic=False, **isolated)
