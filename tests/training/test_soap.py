"""SOAP against its paper, Adam, and the eigenvectors that it looks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from optimizing import draw, ours, torchs
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.training.optimizers import Optimizer, adam, soap
from pykinml_func.types import Networks, OptimizerState, Trainable


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
