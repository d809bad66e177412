"""Recorded graphs: shorter than what was done, and the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import OpOverload
from torch.func import grad
from torch.fx import GraphModule
from torch.nn.functional import relu, silu
from torch.utils._pytree import tree_leaves

from pykinml_func.training.compilation import RecordedStep
from pykinml_func.training.graphs import Recorder, plain_function, simplified


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit."""
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def recorded_graph(function: Callable[..., Any], *arguments: Tensor) -> tuple[GraphModule, list[str]]:
    """The graph that a function is recorded as, and the names of its operations."""
    recorder = Recorder(list(arguments))
    with recorder, torch.no_grad():
        result = function(*arguments)
    graph = simplified(recorder.graph_of(list(result) if isinstance(result, tuple) else [result]))
    return graph, [node.target._opname for node in graph.graph.nodes if node.op == "call_function"]


CONSTANT = torch.arange(6.0).reshape(2, 3)
X = torch.linspace(-1, 2, 6).reshape(2, 3)
SIMPLER: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "what is made of nothing is a constant": (lambda x: x + torch.ones(3) * 2, ["add"]),
    "constants are computed once": (lambda x: x + (CONSTANT.exp() * 2).sum(dim=0), ["add"]),
    "a repeated operation is done once": (lambda x: x.sin() * x.sin(), ["sin", "mul"]),
    "an unused one is left out": (lambda x: (x.cos(), x.sin())[1], ["sin"]),
    "there and back": (lambda x: x.unsqueeze(0).squeeze(0).T.T.exp(), ["exp"]),
    "there and back in place": (lambda x: SQUEEZE(x.unsqueeze(0), [0]).exp(), ["exp"]),
    "the long way": (lambda x: x.unsqueeze(0).squeeze(0).view(3, 2).view(1, 6).exp(), ["view", "exp"]),
    "to where a view began": (lambda x: x.permute(1, 0).exp().unsqueeze(0).squeeze(0).sin(), ["permute", "exp", "sin"]),
    "an expansion is no way": (lambda x: x.unsqueeze(0).expand(4, 2, 3).exp(), ["view", "expand", "exp"]),
    "nor is a transposition": (lambda x: x.unsqueeze(0).transpose(1, 2).exp(), ["view", "transpose", "exp"]),
}
SQUEEZE = torch.ops.aten.squeeze_.dims


@pytest.mark.parametrize("name", SIMPLER)
def test_the_record_is_simplified(name: str) -> None:
    function, operations = SIMPLER[name]
    graph, found = recorded_graph(function, X)
    assert found == operations
    for x in (X, X + 1):
        assert torch.equal(graph(x)[0], function(x))


def test_random_numbers_are_drawn_in_every_call() -> None:
    graph, _ = recorded_graph(lambda x: x + torch.rand(3) + torch.bernoulli(CONSTANT / 6), X)
    torch.manual_seed(0)
    assert not torch.equal(graph(X)[0], graph(X)[0])


DIRECT: dict[str, Callable[[Tensor], Any]] = {
    "functions": lambda x: (-x * 2.0 + CONSTANT.exp()).tanh() @ CONSTANT.T,
    "methods": lambda x: x.view(3, 2).expand(2, 3, 2).new_zeros(2, dtype=torch.float32),
    "keywords": lambda x: (x.sum(dim=1, keepdim=True), x.std(dim=0, correction=0), torch.sub(x, x.T[0, 0], alpha=3)),
    "several results": lambda x: (*x.max(dim=1), *x.split([1, 2], dim=1), *torch.topk(x, 2)),
    "indices": lambda x: (
        x[:, [2, 0]],
        x[1:, None],
        x.index_add(1, torch.tensor([0, 0]), x[:, 1:], alpha=-1),
        x[..., -1],
    ),
    "choices": lambda x: (torch.where(x > 0, x, 0.5), x.clamp(min=0.1), torch.div(x, 0.3, rounding_mode="floor")),
    "other types": lambda x: (x.to(torch.float64), x.int(), x.to(torch.bool).any(dim=0), torch.ones_like(x) - 1),
    "derivatives": grad(lambda x: (silu(x) * relu(x) / x.exp().mean() + x.amax(dim=1).norm()).sum()),
    "lists": lambda x: (
        torch.stack([x, x.T.reshape(2, 3)], dim=1),
        torch.cat([x, CONSTANT]),
        torch.einsum("ab,cb->ac", x, x),
    ),
}


@pytest.mark.parametrize("name", DIRECT)
def test_a_plain_function_does_what_the_graph_does(name: str) -> None:
    """Whatever the operations, and whether they are torch's functions, methods or neither."""
    function = DIRECT[name]
    recorder = Recorder([X])
    with recorder, torch.no_grad():
        results = tree_leaves(function(X))
    run = plain_function(simplified(recorder.graph_of(results)))
    for x in (X, X + 1, X):
        found, expected = run(x), tree_leaves(function(x))
        assert_same(found, expected)
        assert [(each.dtype, each.shape) for each in found] == [(each.dtype, each.shape) for each in expected]


@pytest.mark.parametrize("name", ["functions", "methods"])
def test_a_plain_function_loses_no_time(name: str) -> None:
    """Neither on operations where torch has functions and methods, nor on attributes."""
    run: Any = plain_function(recorded_graph(DIRECT[name], X)[0])
    nodes = run.func.__self__.graph.nodes
    assert {node.op for node in nodes} <= {"placeholder", "call_function", "call_method", "output"}
    assert not any(isinstance(node.target, OpOverload) for node in nodes)


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    """One sum, whose one name loses its axis in place."""
    first, second = x.sum(dim=1, keepdim=True), x.sum(dim=1, keepdim=True)
    first.squeeze_(1)
    return first, second


def filled(x: Tensor) -> tuple[Tensor, Tensor]:
    """As the derivative of silu does it, twice."""
    first, second = torch.empty_like(x).fill_(1), torch.empty_like(x).fill_(1)
    first.sub_(x)
    second.sub_(x)
    return first, second


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 1
    y[0].add_(1)
    return y


def read_before_and_after(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 1
    z = y * 2
    y.add_(1)
    return y * 2, z


def shaped_in_place(x: Tensor) -> tuple[Tensor, Tensor]:
    y = (x * 1).T
    z = y.unsqueeze(0)
    SQUEEZE(z, [0])
    return z * 2, y


@pytest.mark.parametrize("function", [twice, filled, written_through_a_view, read_before_and_after, shaped_in_place])
def test_what_is_done_in_place_is_done(function: Callable[[Tensor], Any]) -> None:
    step = RecordedStep(function, eager_calls=0)
    for x in (X, X + 1, X):
        found, expected = step(x), function(x)
        assert_same(found, expected)
        assert [each.shape for each in tree_leaves(found)] == [each.shape for each in tree_leaves(expected)]


MOVES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.unsqueeze(0),
    lambda x: x.unsqueeze(-1),
    lambda x: x.squeeze(0),
    lambda x: x.squeeze(),
    lambda x: SQUEEZE(x.unsqueeze(1), [1]),
    lambda x: x.transpose(0, -1),
    lambda x: x.permute(*reversed(range(x.dim()))),
    lambda x: x.expand(2, *x.shape)[:, ..., :2],
    lambda x: x.expand(1, *x.shape),
    lambda x: x.flatten(),
    lambda x: x.reshape(2, -1),
    lambda x: x.sin(),
]


@given(moves=st.lists(st.sampled_from(range(len(MOVES))), max_size=9), kept=st.integers(0, 8))
@settings(max_examples=300)
def test_no_chain_of_views_is_cut_short_wrongly(moves: list[int], kept: int) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        found = [x]
        for move in moves:
            if found[-1].numel() < 200:
                found.append(MOVES[move](found[-1]))
        return found[-1] * 2, found[kept % len(found)] + 1

    step = RecordedStep(function, eager_calls=0)
    for x in (X, X.exp()):
        for a, b in zip(step(x), function(x), strict=True):
            assert a.shape == b.shape
            assert torch.equal(a, b)
