"""What the machine can do, measured in the run that uses it: matrix products, memory, exponentials.

Each figure is the best of several: other work on the machine only ever slows it down.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.peers.protocol import timed
from pykinml_func import AEVConfig
from pykinml_func.potential import aev_kernel

_SIDE = 1536
_STREAM_BYTES = 2**28
_IN_CACHE = 2**11
_SECONDS = 0.2


def best_seconds(call: Callable[[], object], least_seconds: float = _SECONDS) -> float:
    """The shortest of as many calls as fill `least_seconds`, three at least."""
    call()
    found: list[float] = []
    while len(found) < 3 or sum(found) < least_seconds:
        found.append(timed(call))
    return min(found)


def matmul_rate(dtype: torch.dtype) -> float:
    """flop/s of a large square product."""
    left, right = (torch.rand(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * _SIDE**3 / best_seconds(lambda: torch.mm(left, right, out=out))


def layer_rate(dtype: torch.dtype, elements: int, atoms: int, fan_in: int, fan_out: int) -> float:
    """flop/s of the products of one layer, of `atoms` atoms an element: forward, both gradients."""
    inputs = torch.rand(elements, atoms, fan_in, dtype=dtype)
    weights = torch.rand(elements, fan_in, fan_out, dtype=dtype)
    changes = torch.rand(elements, atoms, fan_out, dtype=dtype)

    def products() -> None:
        torch.bmm(inputs, weights)
        torch.bmm(inputs.transpose(1, 2), changes)
        torch.bmm(changes, weights.transpose(1, 2))

    return 6 * elements * atoms * fan_in * fan_out / best_seconds(products)


def read_rate() -> float:
    """byte/s of summing an array that no cache holds."""
    numbers = torch.ones(_STREAM_BYTES // 8, dtype=torch.float64)
    return _STREAM_BYTES / best_seconds(numbers.sum)


def copy_rate() -> float:
    """byte/s, read and written, of copying such an array."""
    numbers = torch.ones(_STREAM_BYTES // 8, dtype=torch.float64)
    out = torch.empty_like(numbers)
    return 2 * _STREAM_BYTES / best_seconds(lambda: out.copy_(numbers))


def torch_exponential_rate(dtype: torch.dtype) -> float:
    """exp/s of torch over an array that the first cache holds, on one thread, times the threads."""
    numbers = -torch.rand(_IN_CACHE, dtype=dtype)
    out = torch.empty_like(numbers)

    def several() -> None:
        for _ in range(100):
            torch.exp(numbers, out=out)

    return torch.get_num_threads() * 100 * _IN_CACHE / best_seconds(several)


def kernel_exponential_rate(dtype: torch.dtype) -> float | None:
    """exp/s of the compiled AEVs, from AEVs of a great many radial shells and no angle: an exponential with the five
    flops that its shell takes. None where they were not compiled.
    """
    if not aev_kernel.available():
        return None
    config = AEVConfig(elements=("C",), n_radial=512, angular_cutoff=0.1, n_angular_radial=1, n_angular=1)
    side = torch.arange(2.0, dtype=dtype)
    positions = torch.cartesian_prod(side, side, side).repeat(64, 1)
    n = len(positions)
    atoms = aev_kernel.Atoms(torch.arange(n), torch.arange(0, n + 1, 8), torch.zeros(n, dtype=torch.int64))
    return n * 7 * 512 / best_seconds(lambda: aev_kernel.aevs(config, atoms, positions))


def all_rates(elements: int, atoms: int, fan_in: int, fan_out: int) -> dict[str, dict[str, float]]:
    """Every rate a precision. elements, atoms, fan_in, fan_out: the shape of the networks' first layer."""
    memory = {"read": read_rate(), "copy": copy_rate()}
    rates = {}
    for dtype in (torch.float64, torch.float32):
        kernel = kernel_exponential_rate(dtype)
        rates[str(dtype).removeprefix("torch.")] = {
            "matmul": matmul_rate(dtype),
            "layer": layer_rate(dtype, elements, atoms, fan_in, fan_out),
            "exp_torch": torch_exponential_rate(dtype),
            **({} if kernel is None else {"exp_kernel": kernel}),
            **memory,
        }
    return rates
