from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.config import TrainConfig
from pykinml_func.training.optimizers import Optimizer, adam, adamw, build_optimizer, sgd
from pykinml_func.types import Networks, Trainable

TORCHS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"optimizer": "sgd", "momentum": 0.0}, {}),
    ({"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.01}, {}),
    ({"optimizer": "sgd"}, {"momentum": 0.5, "nesterov": True}),
    ({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}),
    ({"optimizer": "adam"}, {}),
    ({"optimizer": "adam", "weight_decay": 0.01}, {}),
    ({"optimizer": "adamw"}, {}),
    ({"optimizer": "adamw", "weight_decay": 0.1}, {}),
]


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


@pytest.mark.parametrize(("settings", "options"), CASES)
def test_an_optimizer_is_torchs(settings: dict[str, Any], options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = draw(generator)
    gradients = [draw(generator, scale=10.0 ** (k % 5 - 3)) for k in range(60)]
    rates = [1e-2 * 0.97**k for k in range(60)]
    training = TrainConfig(**settings)
    found = ours(build_optimizer(training), start, gradients, rates)
    kind = TORCHS[training.optimizer]
    expected = torchs(kind, start, gradients, rates, weight_decay=training.weight_decay, **options)
    for mine, theirs, before in zip(*map(tree_leaves, (found, expected, start)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        assert (mine - before).abs().max() > 1e-2


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("optimizer", [sgd(0.5, 0.1), adam(0.1), adamw(0.1)], ids=["sgd", "adam", "adamw"])
def test_update_is_pure(optimizer: Optimizer, biases: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    trainable, gradients = draw(generator, biases=biases), draw(generator, biases=biases)
    arguments = (gradients, optimizer.init(trainable), trainable, torch.tensor(0.1, dtype=torch.float64))
    before = tree_map(torch.clone, arguments)
    first, second = optimizer.update(*arguments), optimizer.update(*arguments)
    for then, now in zip(tree_leaves(before), tree_leaves(arguments), strict=True):
        assert torch.equal(then, now)
    for one, other in zip(tree_leaves(first), tree_leaves(second), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", [sgd(), adam(), adamw()], ids=["sgd", "adam", "adamw"])
def test_moments_share_no_memory(optimizer: Optimizer) -> None:
    """torch.compile would compile a step again once shared ones part."""
    leaves = tree_leaves(optimizer.init(draw(torch.Generator().manual_seed(0))))
    assert len({leaf.data_ptr() for leaf in leaves}) == len(leaves)


@pytest.mark.parametrize("optimizer", [sgd(0.5, 0.1), adam(0.1), adamw(0.1)], ids=["sgd", "adam", "adamw"])
def test_single_precision_stays_single(optimizer: Optimizer) -> None:
    trainable = tree_map(torch.Tensor.float, draw(torch.Generator().manual_seed(0)))
    rate = torch.tensor(0.1, dtype=torch.float64)
    updated, state = optimizer.update(trainable, optimizer.init(trainable), trainable, rate)
    assert {leaf.dtype for leaf in tree_leaves((updated, state.moments))} == {torch.float32}
