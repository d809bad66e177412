"""What the tests of optimizers share: drawn parameters, and many steps of an optimizer of ours or torch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.training.optimizers import Optimizer
from pykinml_func.types import Networks, Trainable


def draw(generator: torch.Generator, scale: float = 1.0, biases: bool = True) -> Trainable:
    """Two levels, the second of which has one input more, and three loss weights."""

    def normal(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def level(n_inputs: int) -> Networks:
        drawn = (normal(2, 5), normal(2, 1))
        return Networks((normal(2, 5, n_inputs), normal(2, 1, 5)), drawn if biases else ())

    return Trainable((level(7), level(8)), normal(3))


def ours(optimizer: Optimizer, start: Trainable, gradients: Sequence[Trainable], rates: Sequence[float]) -> Trainable:
    trainable, state = start, optimizer.init(start)
    for gradient, rate in zip(gradients, rates, strict=True):
        trainable, state = optimizer.update(gradient, state, trainable, torch.tensor(rate, dtype=torch.float64))
    assert state.step.item() == len(gradients)
    return trainable


def torchs(
    kind: Any, start: Trainable, gradients: Sequence[Trainable], rates: Sequence[float], **options: Any
) -> Trainable:
    """The networks decay, the loss weights (the last leaf) do not."""
    leaves = [leaf.clone().requires_grad_() for leaf in tree_leaves(start)]
    groups = [{"params": leaves[:-1]}, {"params": leaves[-1:], "weight_decay": 0.0}]
    optimizer = kind(groups, lr=1.0, **options)
    for gradient, rate in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for leaf, value in zip(leaves, tree_leaves(gradient), strict=True):
            leaf.grad = value.clone()
        optimizer.step()
    flat = iter(leaf.detach() for leaf in leaves)
    return tree_map(lambda _: next(flat), start)
