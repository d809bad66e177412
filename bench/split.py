"""Where the time goes: compiled AEVs, matrix products, other operations of torch, and all that is not torch."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest.mock import patch

from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from pykinml_func.potential import aev_kernel

_MATMUL = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}
_NOTHING_DONE = {
    *("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::expand", "aten::squeeze", "aten::unsqueeze"),
    *("aten::permute", "aten::transpose", "aten::t", "aten::slice", "aten::select", "aten::as_strided", "aten::detach"),
    *("aten::alias", "aten::split", "aten::unbind", "aten::unflatten", "aten::flatten", "aten::narrow"),
}
"""Operations that look at the same memory in another way, whose time is overhead."""


class Split(NamedTuple):
    """Seconds."""

    aev: float
    """the compiled AEV kernel"""
    matmul: float
    elementwise: float
    """other operations of torch on numbers, and what torch.compile made of them"""
    overhead: float
    """the rest: Python, NumPy that packs batches, calls of torch"""


class _Profile(profile):
    """Sees the compiled AEVs too, which recorded steps call without torch's knowledge."""

    def start(self) -> None:
        """See `profile`."""
        call = aev_kernel._call

        def seen(*arguments: Any) -> Tensor:
            with record_function("pykinml::kernel"):
                return call(*arguments)

        self._patch = patch.object(aev_kernel, "_call", seen)
        self._patch.start()
        super().start()

    def stop(self) -> None:
        """See `profile`."""
        super().stop()
        self._patch.stop()


def profiler() -> profile:
    """Counts the time of each operation of torch, and of the compiled AEVs."""
    return _Profile(activities=[ProfilerActivity.CPU])


def split_of(profiled: profile, seconds: float) -> Split:
    """seconds: of the same work without the profiler, which makes Python slower and operations hardly."""
    sums = {"aev": 0.0, "matmul": 0.0, "elementwise": 0.0}
    for event in profiled.key_averages():
        kind = kind_of(event.key)
        if kind is not None:
            sums[kind] += 1e-6 * event.self_cpu_time_total
    return Split(**sums, overhead=max(0.0, seconds - sum(sums.values())))


def kind_of(operation: str) -> str | None:
    """Which part of a split an operation of the profiler belongs to; None: overhead."""
    if operation.startswith("pykinml::"):
        return "aev"
    if operation in _MATMUL:
        return "matmul"
    compiled = "CompiledFxGraph" in operation or operation.startswith(("graph_", "cpp_fused"))
    return "elementwise" if compiled or (operation.startswith("aten::") and operation not in _NOTHING_DONE) else None
