from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from pykinml_func.config import ModelConfig
from pykinml_func.data.batching import Packer, Source
from pykinml_func.data.loader import Loader
from pykinml_func.errors import ConfigError
from pykinml_func.training.compilation import CompiledStep, repays_compilation
from pykinml_func.training.optimizers import adam
from pykinml_func.training.step import Objective, build_train_step, init_state
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
    assert repays_compilation("off", "positions", 10**9, 1e4) is False
    assert repays_compilation("on", "jacobian", 1, 1) is True


@pytest.mark.usefixtures("no_compiler")
def test_on_without_a_compiler_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"install g\+\+ .* compile = off"):
        repays_compilation("on", None, 10**9, 1e4)
    assert repays_compilation("auto", "positions", 10**9, 1e4) is False
    assert repays_compilation("off", "positions", 10**9, 1e4) is False


def test_an_empty_path_has_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="C\\+\\+ compiler"):
        repays_compilation("on", None, 1, 1)
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++")
    assert repays_compilation("on", None, 1, 1) is True


@pytest.mark.usefixtures("a_compiler")
@pytest.mark.parametrize("path", [None, "positions"])
def test_auto_compiles_long_runs_and_no_short_ones(path: str | None) -> None:
    assert repays_compilation("auto", path, 100, 500.0) is False
    assert repays_compilation("auto", path, 10**6, 500.0) is True
    answers = [repays_compilation("auto", path, steps, 500.0) for steps in np.logspace(1, 7, 40).astype(int)]
    assert answers == sorted(answers)


@pytest.mark.usefixtures("a_compiler")
def test_auto_asks_how_large_the_batches_are() -> None:
    answers = [repays_compilation("auto", "positions", 2000, atoms) for atoms in (5.0, 5000.0)]
    assert answers == [False, True]


@pytest.mark.usefixtures("a_compiler")
def test_auto_never_compiles_what_saves_nothing() -> None:
    assert repays_compilation("auto", "jacobian", 10**8, 1e4) is False


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, while it loads its compiler
@pytest.mark.parametrize(("contents", "backend"), [("jacobians", "inductor"), ("positions", "aot_eager")])
def test_a_compiled_step_is_the_eager_one(
    model_config: ModelConfig,
    state: TrainState,
    make_batch: MakeBatch,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    contents: str,
    backend: str,
) -> None:
    """The larger graph of positions goes through the same tracing, but not the slow C++ compiler."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    eager = build_train_step(model_config, adam(), Objective(forces=True))
    compiled = CompiledStep(eager)
    moved, expected = state, state
    for index in ([0, 1, 2], [2, 1, 0], [1, 1, 2]):  # one shape
        batch = make_batch(index, contents, batch_size=3)
        moved, sums = compiled(moved, batch)
        expected, expected_sums = eager(expected, batch)
    assert compiled.shapes == 1
    assert any((tmp_path / "inductor").rglob("*.so")) is (backend == "inductor")
    for one, other in zip(tree_leaves((moved, sums)), tree_leaves((expected, expected_sums)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("traced_only")
def test_levels_and_learned_weights_are_one_graph(
    chain_config: ModelConfig, chain_params: Params, chain_labelled: Structures, make_batch: MakeBatch
) -> None:
    objective = Objective(forces=True, learned=True)
    eager = build_train_step(chain_config, adam(), objective)
    compiled, expected = CompiledStep(eager), init_state(chain_params, adam(), objective, 1e-3)
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
    step = CompiledStep(build_train_step(model_config, adam(), Objective()))
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
        assert torch.equal(CompiledStep(build(run))(torch.ones(2)), torch.full((2,), float(run)))
    step = CompiledStep(build(2))
    for size in range(2, 14):
        step(torch.ones(size))
    assert step.shapes == 12
