from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.config import TrainConfig
from pykinml_func.training.optimizers import Optimizer, adam, adamw, build_optimizer, sgd, soap
from pykinml_func.types import Networks, OptimizerState, Trainable

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


def soaped(matrix: torch.Tensor, gradients: Sequence[torch.Tensor], rate: float) -> torch.Tensor:
    """SOAP on one matrix, as its paper's algorithm 3 has it, of beta 0.95 and a turn of the bases every ten steps."""
    beta, zeros = 0.95, torch.zeros_like
    first, second = zeros(matrix), zeros(matrix)
    left, right = zeros(matrix @ matrix.T), zeros(matrix.T @ matrix)
    q_left, q_right = (torch.eye(len(each), dtype=torch.float64) for each in (left, right))
    for step, g in enumerate(gradients, start=1):
        first = beta * first + (1 - beta) * g
        left, right = beta * left + (1 - beta) * g @ g.T, beta * right + (1 - beta) * g.T @ g
        if step == 1 or step % 10 == 0:
            q_left, q_right = (
                torch.linalg.qr((mean + mean.trace() * 2.0**-26 * torch.eye(len(mean), dtype=mean.dtype)) @ basis).Q
                for mean, basis in ((left, q_left), (right, q_right))
            )
        second = beta * second + (1 - beta) * (q_left.T @ g @ q_right) ** 2
        bias = 1 - beta**step
        turned = (q_left.T @ first @ q_right / bias) / ((second / bias).sqrt() + 1e-8)
        matrix = matrix - rate * q_left @ turned @ q_right.T
    return matrix


def test_soap_is_its_papers_on_layers_and_adam_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradients = draw(generator), [draw(generator, scale=10.0 ** (k % 5 - 3)) for k in range(35)]
    found = ours(soap(), start, gradients, [1e-2] * 35)
    adams = torchs(torch.optim.Adam, start, gradients, [1e-2] * 35, betas=(0.95, 0.95))
    for level, theirs in enumerate(adams.networks):
        torch.testing.assert_close(found.networks[level].biases, theirs.biases, rtol=0, atol=1e-12)
        for layer, weights in enumerate(start.networks[level].weights):
            for s in range(2):
                each = [gradient.networks[level].weights[layer][s] for gradient in gradients]
                mine, expected = found.networks[level].weights[layer][s], soaped(weights[s], each, 1e-2)
                torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)  # a null space's rounding
    torch.testing.assert_close(found.log_variances, adams.log_variances, rtol=0, atol=1e-12)


def one_layer(matrix: torch.Tensor) -> Trainable:
    return Trainable((Networks((matrix.unsqueeze(0),), ()),), torch.zeros(0, dtype=torch.float64))


def test_soap_decays_the_networks_alone() -> None:
    start = draw(torch.Generator().manual_seed(0))
    still = tree_map(torch.zeros_like, start)
    moved = ours(soap(0.1), start, [still], [0.5])
    for mine, before in zip(tree_leaves(moved.networks), tree_leaves(start.networks), strict=True):
        torch.testing.assert_close(mine, 0.95 * before, rtol=1e-12, atol=0)
    assert torch.equal(moved.log_variances, start.log_variances)


def test_soap_does_not_mind_inputs_that_rise_and_fall_together() -> None:
    """Least squares on inputs whose correlation is 0.9999: Adam's steps, one rate an input, hardly move apart."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    x = common + 0.01 * torch.randn(200, 6, generator=generator, dtype=torch.float64)
    truth = torch.randn(4, 6, generator=generator, dtype=torch.float64)

    def error_after(optimizer: Optimizer) -> float:
        layer = one_layer(torch.zeros(4, 6, dtype=torch.float64))
        state: OptimizerState = optimizer.init(layer)
        for k in range(300):
            residual = (layer.networks[0].weights[0][0] - truth) @ x.T
            rate = torch.tensor(0.05 * (1 - k / 300), dtype=torch.float64)
            layer, state = optimizer.update(one_layer(residual @ x / 200), state, layer, rate)
        return (layer.networks[0].weights[0][0] - truth).abs().max().item()

    assert error_after(soap()) < 0.1 * error_after(adam())


def test_soaps_bases_stay_orthonormal_and_find_the_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    layer = one_layer(torch.zeros(5, 5, dtype=torch.float64))
    optimizer, rate = soap(), torch.tensor(0.0, dtype=torch.float64)
    state = optimizer.init(layer)
    for _ in range(200):
        gradient = rotation @ torch.diag(torch.tensor([16.0, 8.0, 4.0, 2.0, 1.0], dtype=torch.float64))
        layer, state = optimizer.update(one_layer(gradient), state, layer, rate)
    basis = state.moments[4].networks[0].weights[0][0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close((rotation.T @ basis).abs(), torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-6)
