"""Two changes of torch that PyKinML 1.1.2 does not know, undone from outside for the worker that calls `undo`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau


def undo() -> None:
    """Let torch.load unpickle again, and ReduceLROnPlateau take `verbose` again."""
    # Since torch 2.6 weights_only is the default of torch.load; PyKinML's prepared sets and checkpoints are pickles,
    # which this worker wrote itself a moment ago.
    torch.load = partial(torch.load, weights_only=False)
    # Since torch 2.7 ReduceLROnPlateau has no `verbose`, which PyKinML always gives; it only printed.
    ReduceLROnPlateau.__init__ = _without_verbose(ReduceLROnPlateau.__init__)  # type: ignore[method-assign]


def _without_verbose(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def changed(*args: Any, verbose: bool = False, **kwargs: Any) -> None:  # noqa: ARG001
        init(*args, **kwargs)

    return changed
