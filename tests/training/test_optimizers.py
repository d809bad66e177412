from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizing import draw, ours, torchs
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.config import TrainConfig
from pykinml_func.training.optimizers import Optimizer, adam, adamw, build_optimizer, sgd, soap

TORCHS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
NAMES = ["sgd", "adam", "adamw", "soap"]
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
@pytest.mark.parametrize("optimizer", [sgd(0.5, 0.1), adam(0.1), adamw(0.1), soap(0.1)], ids=NAMES)
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


@pytest.mark.parametrize("optimizer", [sgd(), adam(), adamw(), soap()], ids=NAMES)
def test_moments_share_no_memory(optimizer: Optimizer) -> None:
    """torch.compile would compile a step again once shared ones part."""
    leaves = [leaf for leaf in tree_leaves(optimizer.init(draw(torch.Generator().manual_seed(0)))) if leaf.numel()]
    assert len({leaf.data_ptr() for leaf in leaves}) == len(leaves)


@pytest.mark.parametrize("optimizer", [sgd(0.5, 0.1), adam(0.1), adamw(0.1), soap(0.1)], ids=NAMES)
def test_single_precision_stays_single(optimizer: Optimizer) -> None:
    trainable = tree_map(torch.Tensor.float, draw(torch.Generator().manual_seed(0)))
    rate = torch.tensor(0.1, dtype=torch.float64)
    updated, state = optimizer.update(trainable, optimizer.init(trainable), trainable, rate)
    assert {leaf.dtype for leaf in tree_leaves((updated, state.moments))} == {torch.float32}
