"""A model on paper: force training on 10 million structures of C5H5's size, on 1, 8 and 8 x 16 GPUs.

One step of a GPU takes

    max(packing + launching, kernels) + adding up gradients.

Packing: `Packer.pack` of the GPU's share of the batch, as measured on this processor, and before it can be launched.
Launching: the operations of the recorded step, counted, at LAUNCH_SECONDS each. Kernels: what these operations read and
write, counted, at BANDWIDTH, and the arithmetic (`bench.counts`) at FLOPS. Gradients, n bytes among p GPUs:

    2 (p - 1) / p n / NETWORK + 2 LATENCY log2(p),

a ring's volume and a tree's stages. An epoch has the steps of 8 million training and 1 million validation structures,
in batches of the same size, and the drawing of the order, which every rank does for itself, as measured here. What is
assumed besides: no GPU is slower than another; positions and forces are in the memory of each node after the first
epoch; what ranks tell each other besides gradients (a signal to stop, the sums of an epoch) takes no time.

# p GPUs, M structures
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch._ops import OpOverload
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bench.counts import Task, near_counts, task_work
from bench.peers.problem import AEV, MODEL, images, networks, read
from bench.peers.protocol import timed
from pykinml_func.config import TrainConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.elements import species_of
from pykinml_func.data.loader import epoch_order
from pykinml_func.potential import aev_kernel
from pykinml_func.training.graphs import Recorder, simplified
from pykinml_func.training.optimizers import build_optimizer
from pykinml_func.training.step import build_eval_step, build_objective, build_train_step, init_state
from pykinml_func.types import Batch, Structures

TRAINED, VALIDATED = 8_000_000, 1_000_000
GPUS = (1, 8, 128)
SHARES = (4, 50, 500, 5000)
"""structures of a batch that one GPU has"""

LAUNCH_SECONDS = 8e-6
"""from Python, an operation"""
BANDWIDTH = 2.4e12
"""bytes/s: seven tenths of an H100's"""
FLOPS = 2e13
"""1/s in float64: a third of an H100's, for small matrices"""
NETWORK = 25e9
"""bytes/s of a GPU to another node"""
LATENCY = 5e-6
"""s, a stage between nodes"""

_COUNTED, _TIMED = (20, 80), (20, 1000)
"""Batches from which what grows with a batch is told from what does not."""
_REPEATS = 30


class Line(NamedTuple):
    """What grows with a batch as fixed + each x structures."""

    fixed: float
    each: float

    @classmethod
    def through(cls, sizes: Sequence[int], values: Sequence[float]) -> Self:
        """values: of two batches of these sizes."""
        each = (values[1] - values[0]) / (sizes[1] - sizes[0])
        return cls(values[0] - each * sizes[0], each)

    def at(self, structures: float) -> float:
        """Of a batch."""
        return self.fixed + self.each * structures


class Step(NamedTuple):
    """What a step asks of a GPU."""

    operations: int
    n_bytes: Line
    """that operations read and write"""
    flops: float
    """a structure"""

    def launch_seconds(self) -> float:
        """Of all operations."""
        return LAUNCH_SECONDS * self.operations

    def kernel_seconds(self, structures: float) -> float:
        """Of a batch."""
        return self.n_bytes.at(structures) / BANDWIDTH + self.flops * structures / FLOPS


class Parts(NamedTuple):
    """What the model is made of."""

    pack_seconds: Line
    train: Step
    evaluate: Step
    gradient_bytes: int
    order_seconds: float
    """of all training structures, once an epoch"""
    stored_bytes: float
    """positions and forces of a structure, read once an epoch"""


def measured_parts(data: Path) -> Parts:
    """Measure and count on C5H5, with the tables that a GPU is given. data: the folder of the example data."""
    structures = read(data)
    training = TrainConfig(forces=True, force_path="positions")
    optimizer, objective = build_optimizer(training), build_objective(training)
    state = init_state(networks(), optimizer, objective, training.learning_rate)
    trained: Callable[..., Any] = build_train_step(MODEL, optimizer, objective)
    near = near_counts(AEV, [each.positions for each in images(structures)])
    with patch.object(aev_kernel, "available", lambda: False):
        batches = [_packing(structures, size)() for size in _COUNTED]
        pack = Line.through(_TIMED, [_median(_packing(structures, size)) for size in _TIMED])

    def step(run: Callable[..., Any], first: Any, task: Task) -> Step:
        counted = [operations(run, first, batch) for batch in batches]
        flops = task_work(MODEL, near, task, "positions", 8).flops / structures.n_structures
        return Step(counted[0][0], Line.through(_COUNTED, [n_bytes for _, n_bytes in counted]), flops)

    return Parts(
        pack,
        step(trained, state, "train_forces"),
        step(build_eval_step(MODEL, True), state.params, "energies_and_forces"),
        sum(leaf.nbytes for leaf in tree_leaves(state.trainable)),
        timed(lambda: epoch_order(np.arange(TRAINED), 0, 0)),
        sum(array.nbytes for array in (structures.positions, structures.forces)) / structures.n_structures,
    )


def _packing(structures: Structures, size: int) -> Callable[[], Batch]:
    """Packs a batch of the first structures."""
    energies = np.zeros_like(structures.energies)
    source = Source(species_of(AEV.elements, structures), structures.positions, structures.offsets, 2, energies)
    source = source._replace(forces=structures.forces, has_forces=np.ones_like(energies, dtype=bool))
    packer = Packer(source, np.arange(size), size, torch.float64, torch.device("cpu"))
    return partial(packer.pack, packer.members)


def _median(work: Callable[[], Any]) -> float:
    work()
    return statistics.median(timed(work) for _ in range(_REPEATS))


def operations(step: Callable[..., Any], *arguments: Any) -> tuple[int, float]:
    """How many operations a recorded step has, views apart, and the bytes that they read and write."""
    leaves, structure = tree_flatten(arguments)
    recorder = Recorder(leaves)
    with recorder, torch.no_grad():
        results, _ = tree_flatten(step(*tree_unflatten(leaves, structure)))
    number, n_bytes = 0, 0.0
    for node in simplified(recorder.graph_of(results)).graph.nodes:
        if not isinstance(node.target, OpOverload) or _is_view(node.target):
            continue
        number += 1
        n_bytes += 8 * sum(math.prod(each.meta["layout"][0]) for each in (node, *node.all_input_nodes) if each.meta)
    return number, n_bytes


def _is_view(operation: OpOverload) -> bool:
    return any(result.alias_info is not None for result in operation._schema.returns)


def projected(parts: Parts) -> list[dict[str, float]]:
    """A row for each number of GPUs and each share of a batch."""
    return [_row(parts, gpus, share) for gpus in GPUS for share in SHARES]


def _row(parts: Parts, gpus: int, share: int) -> dict[str, float]:
    batch = gpus * share
    packing, launching = parts.pack_seconds.at(share), parts.train.launch_seconds()
    kernels, adding = parts.train.kernel_seconds(share), exchange_seconds(parts.gradient_bytes, gpus)
    step = max(packing + launching, kernels) + adding
    judged = max(parts.pack_seconds.at(share) + parts.evaluate.launch_seconds(), parts.evaluate.kernel_seconds(share))
    epoch = -(-TRAINED // batch) * step + -(-VALIDATED // batch) * judged + parts.order_seconds
    found: dict[str, float] = {"gpus": gpus, "share": share, "batch": batch, "steps": -(-TRAINED // batch)}
    found |= {"packing": packing, "launching": launching, "kernels": kernels, "adding": adding}
    return {**found, "step_seconds": step, "epoch_seconds": epoch, "rate": TRAINED / epoch}


def exchange_seconds(n_bytes: int, gpus: int) -> float:
    """Of an addition over so many GPUs."""
    return 2 * (gpus - 1) / gpus * n_bytes / NETWORK + 2 * LATENCY * math.log2(gpus)


def print_projection(parts: Parts, rows: list[dict[str, float]]) -> None:
    """The parts, and a table."""
    console = Console(width=150)
    steps = {"a training step": parts.train, "a validation step": parts.evaluate}
    for name, step in steps.items():
        text = f"{step.operations} operations, {1e-6 * step.n_bytes.fixed:.1f} MB and {1e-6 * step.n_bytes.each:.2f} MB"
        console.print(f"{name}: {text} and {1e-6 * step.flops:.2f} MFLOP a structure")
    pack = parts.pack_seconds
    console.print(
        f"packing: {1e6 * pack.fixed:.0f} us and {1e6 * pack.each:.2f} us a structure; gradients: "
        f"{1e-3 * parts.gradient_bytes:.0f} kB"
    )
    console.print(f"order of an epoch: {parts.order_seconds:.2f} s; stored: {parts.stored_bytes:.0f} bytes a structure")
    table = Table(
        "GPUs", "of a batch each", "batch", "steps", "packing, ms", "launching", "kernels", "gradients", "step"
    )
    for name in ("s an epoch", "structures/s", "over one with that share"):
        table.add_column(name)
    ones = {row["share"]: row["rate"] for row in rows if row["gpus"] == 1}
    for row in rows:
        numbers = [f"{row[name]:,}" for name in ("gpus", "share", "batch", "steps")]
        parts_of_step = ("packing", "launching", "kernels", "adding", "step_seconds")
        milliseconds = [f"{1e3 * row[name]:.3g}" for name in parts_of_step]
        rate = [f"{row['epoch_seconds']:.3g}", f"{row['rate']:,.0f}", f"{row['rate'] / ones[row['share']]:.1f}x"]
        table.add_row(*numbers, *milliseconds, *rate)
    console.print(table)
