"""Recorded steps: the plain ones, bit for bit, whatever was left out of the record; and compiled ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.config import ModelConfig, TrainConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.loader import Loader
from pykinml_func.errors import ConfigError
from pykinml_func.training.compilation import RecordedStep, repays_compilation
from pykinml_func.training.optimizers import adam, build_optimizer, sgd
from pykinml_func.training.step import (
    Objective,
    build_eval_step,
    build_predict_step,
    build_train_step,
    init_state,
)
from pykinml_func.types import Batch, Params, Structures, TrainState

MakeBatch = Callable[..., Batch]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)


@pytest.fixture
def a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its slow last stage: graphs are traced, guarded and then run as they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.usefixtures("a_compiler")
def test_off_and_on_are_obeyed() -> None:
    assert repays_compilation("off", True, 10**9) is False
    assert repays_compilation("on", True, 1) is True


@pytest.mark.usefixtures("no_compiler")
def test_on_without_a_compiler_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"install g\+\+ .* compile = off"):
        repays_compilation("on", False, 10**9)
    assert repays_compilation("auto", False, 10**9) is False
    assert repays_compilation("off", False, 10**9) is False


def test_an_empty_path_has_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="C\\+\\+ compiler"):
        repays_compilation("on", False, 1)
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++")
    assert repays_compilation("on", False, 1) is True


@pytest.mark.usefixtures("a_compiler")
def test_auto_compiles_long_runs_and_no_short_ones() -> None:
    assert repays_compilation("auto", False, 100) is False
    assert repays_compilation("auto", False, 10**6) is True
    answers = [repays_compilation("auto", False, steps) for steps in np.logspace(1, 7, 40).astype(int)]
    assert answers == sorted(answers)


@pytest.mark.usefixtures("a_compiler")
def test_auto_never_compiles_what_saves_nothing() -> None:
    assert repays_compilation("auto", True, 10**8) is False


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit."""
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


STEPS = [
    ("aevs", Objective()),
    ("aevs", Objective(learned=True)),
    ("jacobians", Objective(forces=True)),
    ("positions", Objective(forces=True, force_weight=0.6)),
    ("jacobians", Objective(forces=True, learned=True)),
    ("positions", Objective(forces=True, learned=True)),
]


@pytest.mark.parametrize(("contents", "objective"), STEPS)
@pytest.mark.parametrize("activation", ["gaussian", "silu"])
def test_a_recorded_step_is_the_plain_one_bit_for_bit(
    chain_config: ModelConfig,
    chain_params: Params,
    chain_labelled: Structures,
    make_batch: MakeBatch,
    contents: str,
    objective: Objective,
    activation: str,
) -> None:
    """Two levels, labels that are missing, padding, and batches of two sizes."""
    config = chain_config.model_copy(update={"activations": (activation, "tanh", "identity")})
    plain = build_train_step(config, adam(), objective)
    recorded = RecordedStep(plain, eager_calls=0)
    evaluate = build_eval_step(config, objective.forces)
    recorded_evaluate = RecordedStep(evaluate, eager_calls=0)
    moved = expected = init_state(chain_params, adam(), objective, 1e-3)
    for size, index in ((3, [0, 1, 2]), (2, [3, 4]), (3, [3, 4]), (2, [1, 0]), (3, [4, 4, 2])):
        batch = make_batch(index, contents, batch_size=size, structures=chain_labelled)
        moved, sums = recorded(moved, batch)
        expected, expected_sums = plain(expected, batch)
        assert_same((moved, sums), (expected, expected_sums))
        assert_same(recorded_evaluate(moved.params, batch), evaluate(moved.params, batch))
    assert recorded.shapes == recorded_evaluate.shapes >= 2


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "soap"])
def test_every_optimizer_is_recorded(
    model_config: ModelConfig, params: Params, make_batch: MakeBatch, optimizer: str
) -> None:
    """Step after step, from what the last one remembered."""
    pair = build_optimizer(TrainConfig(optimizer=optimizer, weight_decay=1e-2))
    plain = build_train_step(model_config, pair, Objective(forces=True))
    recorded = RecordedStep(plain, eager_calls=0)
    moved = expected = init_state(params, pair, Objective(forces=True), 1e-2)
    for _ in range(12):
        moved, expected = recorded(moved, make_batch())[0], plain(expected, make_batch())[0]
    assert recorded.shapes == 1
    assert_same(moved, expected)


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recorded_predictions_are_the_plain_ones(
    chain_config: ModelConfig, chain_params: Params, make_batch: MakeBatch, contents: str, dtype: torch.dtype
) -> None:
    params = chain_params._replace(networks=tree_map(lambda leaf: leaf.to(dtype), chain_params.networks))
    plain = build_predict_step(chain_config, forces=True)
    recorded = RecordedStep(plain, eager_calls=0)
    for index in ([0, 1, 2], [4, 2, 3]):
        batch = make_batch(index, contents, batch_size=3, dtype=dtype)
        assert_same(recorded(params, batch), plain(params, batch))
    assert {leaf.dtype for leaf in recorded(params, batch)} == {dtype}


class Counted:
    """x -> 2 x, and how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2 * x


@pytest.mark.parametrize("eager_calls", [0, 3, None])
def test_a_shape_is_recorded_once_it_came_often_enough(eager_calls: int | None) -> None:
    function = Counted()
    step = RecordedStep(function) if eager_calls is None else RecordedStep(function, eager_calls=eager_calls)
    before = 40 if eager_calls is None else eager_calls
    for call in range(before + 5):
        assert step.shapes == (call > before)
        assert torch.equal(step(torch.full((3,), float(call))), torch.full((3,), 2.0 * call))
    assert function.calls == before + 1, "the last of them is the one that is recorded"


def test_each_shape_type_and_structure_is_counted_and_recorded_by_itself() -> None:
    step = RecordedStep(lambda pair: [2 * each for each in pair if each is not None], eager_calls=1)
    one, two, single = torch.ones(1), torch.ones(2), torch.ones(2, dtype=torch.float32)
    given = [(one, two), (two, one), (two.double(), one), [two, one], (two, None), (single, None)]
    for number, arguments in enumerate(given):
        expected = [2 * each for each in arguments if each is not None]
        for call in range(3):
            assert_same(step(arguments), expected)
            assert step.shapes == min(number, 5) + (call > 0 and number < 5)


def test_arguments_that_are_one_tensor_may_be_two_later() -> None:
    step, x, y = RecordedStep(lambda a, b: a - b, eager_calls=0), torch.ones(2), torch.full((2,), 3.0)
    assert step(x, x).tolist() == [0, 0]
    assert step(x, y).tolist() == [-2, -2]
    assert step.shapes == 1


def test_a_recorded_step_keeps_no_track_of_derivatives() -> None:
    step = RecordedStep(grad(lambda x: (x**3).sum()), eager_calls=0)
    x = torch.arange(3.0, requires_grad=True)
    for _ in range(2):
        assert torch.equal(step(x), 3 * x**2)
        assert not step(x).requires_grad


def test_what_one_call_gave_stays_when_the_next_one_comes() -> None:
    step = RecordedStep(lambda x: (x + 1, torch.ones(3) * 2, x.T), eager_calls=0)
    first = step(torch.zeros(2, 3))
    kept = [part.clone() for part in first]
    step(torch.ones(2, 3))
    assert_same(first, kept)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, while it loads its compiler
def test_a_compiled_step_is_the_plain_one(
    model_config: ModelConfig,
    params: Params,
    make_batch: MakeBatch,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    optimizer, objective = sgd(), Objective(forces=True)  # the fewest operations
    plain = build_train_step(model_config, optimizer, objective)
    compiled = RecordedStep(plain, compiled=True)
    moved = expected = init_state(params, optimizer, objective, 1e-3)
    for index in ([0, 1, 2], [2, 1, 0], [1, 1, 2]):  # one shape
        batch = make_batch(index, "positions", batch_size=3)
        moved, sums = compiled(moved, batch)
        expected, expected_sums = plain(expected, batch)
    assert compiled.shapes == 1
    assert any((tmp_path / "inductor").rglob("*.so"))
    for one, other in zip(tree_leaves((moved, sums)), tree_leaves((expected, expected_sums)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("traced_only")
def test_levels_and_learned_weights_are_one_graph(
    chain_config: ModelConfig, chain_params: Params, chain_labelled: Structures, make_batch: MakeBatch
) -> None:
    objective = Objective(forces=True, learned=True)
    eager = build_train_step(chain_config, adam(), objective)
    compiled, expected = RecordedStep(eager, compiled=True), init_state(chain_params, adam(), objective, 1e-3)
    moved = expected
    for index in ([0, 1, 2], [3, 4, 1]):
        batch = make_batch(index, batch_size=3, structures=chain_labelled)
        moved, _ = compiled(moved, batch)
        expected, _ = eager(expected, batch)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled.shapes
    for one, other in zip(tree_leaves(moved), tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("traced_only")
def test_mixed_sizes_are_few_shapes_each_traced_once(
    model_config: ModelConfig,
    state: TrainState,
    make_structures: Callable[..., Structures],
    make_source: Callable[..., Source],
) -> None:
    structures = make_structures(["H2", "CH4", "C2H2", "C3H4", "C2H6"] * 12, seed=1)
    source = make_source(structures, model_config.aev, "aevs")
    packer = Packer(source, np.arange(60), 12, torch.float64, torch.device("cpu"))
    batches = [batch for epoch in range(6) for batch in Loader(packer, 3).epoch(epoch)]
    step = RecordedStep(build_train_step(model_config, adam(), Objective()), compiled=True)
    for batch in batches:
        state, _ = step(state, batch)
    met = {tuple(leaf.shape for leaf in tree_leaves(batch)) for batch in batches}
    assert step.shapes == len(met) == torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 2 <= len(met) <= 6 < len({int((batch.structure_index < 12).sum()) for batch in batches})


@pytest.mark.usefixtures("traced_only")
def test_many_shapes_and_many_runs_pass_torchs_default_limit_of_recompilations() -> None:
    def build(run: int) -> Callable[[Any], Any]:
        return lambda x: x * run

    for run in range(10):
        assert torch.equal(RecordedStep(build(run), compiled=True)(torch.ones(2)), torch.full((2,), float(run)))
    step = RecordedStep(build(2), compiled=True)
    for size in range(2, 14):
        step(torch.ones(size))
    assert step.shapes == 12
