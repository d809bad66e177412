from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.training.optimizers import adam
from pykinml_func.types import Networks


def draw(generator: torch.Generator, scale: float = 1.0) -> Networks:
    def normal(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Networks((normal(2, 5, 7), normal(2, 1, 5)), (normal(2, 5), normal(2, 1)))


def ours(networks: Networks, gradients: Sequence[Networks], rates: Sequence[float], **options: float) -> Networks:
    optimizer = adam(**options)
    moments = optimizer.init(networks)
    for gradient, rate in zip(gradients, rates, strict=True):
        learning_rate = torch.tensor(rate, dtype=torch.float64)
        networks, moments = optimizer.update(gradient, moments, networks, learning_rate)
    assert moments.step.item() == len(gradients)
    return networks


def torchs(networks: Networks, gradients: Sequence[Networks], rates: Sequence[float], **options: float) -> Networks:
    leaves = [leaf.clone().requires_grad_() for leaf in tree_leaves(networks)]
    betas = (options.get("beta1", 0.9), options.get("beta2", 0.999))
    optimizer = torch.optim.Adam(leaves, betas=betas, eps=options.get("epsilon", 1e-8))
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for leaf, value in zip(leaves, tree_leaves(gradient), strict=True):
            leaf.grad = value.clone()
        optimizer.step()
    flat = iter(leaf.detach() for leaf in leaves)
    return tree_map(lambda _: next(flat), networks)


@pytest.mark.parametrize("options", [{}, {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-2}])
def test_adam_is_torchs(options: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = draw(generator)
    gradients = [draw(generator, scale=10.0 ** (k % 5 - 3)) for k in range(50)]
    rates = [1e-2 * 0.97**k for k in range(50)]
    found = ours(start, gradients, rates, **options)
    expected = torchs(start, gradients, rates, **options)
    for mine, theirs, before in zip(*map(tree_leaves, (found, expected, start)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        assert (mine - before).abs().max() > 1e-2


@pytest.mark.parametrize("changed", [draw, lambda g: Networks(draw(g).weights, ())])
def test_update_is_pure(changed: Callable[[torch.Generator], Networks]) -> None:
    generator = torch.Generator().manual_seed(0)
    networks, gradients = changed(generator), changed(generator)
    optimizer = adam()
    moments = optimizer.init(networks)
    before = tree_map(torch.clone, (networks, gradients, moments))
    optimizer.update(gradients, moments, networks, torch.tensor(0.1))
    for then, now in zip(tree_leaves(before), tree_leaves((networks, gradients, moments)), strict=True):
        assert torch.equal(then, now)


def test_single_precision_stays_single() -> None:
    networks = tree_map(torch.Tensor.float, draw(torch.Generator().manual_seed(0)))
    updated, moments = adam().update(networks, adam().init(networks), networks, torch.tensor(0.1, dtype=torch.float64))
    assert {leaf.dtype for leaf in tree_leaves((updated, moments.first, moments.second))} == {torch.float32}
