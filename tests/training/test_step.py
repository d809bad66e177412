from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.potential.forces import energy_and_forces
from pykinml_func.training.metrics import summary
from pykinml_func.training.optimizers import Optimizer, adam
from pykinml_func.training.step import build_eval_step, build_predict_step, build_train_step
from pykinml_func.types import AdamState, Batch, Networks, Params, Structures, TrainState

MakeBatch = Callable[..., Batch]
SPECIES = {6: 0, 1: 1}

descent = Optimizer(
    adam().init,
    lambda gradients, state, networks, rate: (tree_map(lambda p, g: p - rate * g, networks, gradients), state),
)
"""Plain gradient descent, so that a step at rate 1 tells the gradient."""


def with_rate(state: TrainState, rate: float) -> TrainState:
    return state._replace(learning_rate=torch.tensor(rate, dtype=torch.float64))


def one_by_one(config: ModelConfig, params: Params, structures: Structures) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Energy less self energies, and forces, of each structure by itself."""
    found = []
    for start, end in pairwise(structures.offsets):
        species = torch.tensor([SPECIES[number] for number in structures.numbers[start:end].tolist()])
        energy, forces = energy_and_forces(config, params, species, torch.from_numpy(structures.positions[start:end]))
        found.append((energy - params.self_energies[species].sum(), forces))
    return found


def plain_loss(config: ModelConfig, params: Params, structures: Structures, weight: float) -> float:
    """(1 - w) mean (E - E')² + w mean over structures of the mean (F - F')² of its components."""
    found = one_by_one(config, params, structures)
    energy = [(e.item() - structures.energies[m, 0]) ** 2 for m, (e, _) in enumerate(found)]
    parts = zip(found, pairwise(structures.offsets), strict=True)
    force = [np.mean((f.numpy() - structures.forces[a:b, 0]) ** 2) for (_, f), (a, b) in parts]
    return float((1 - weight) * np.mean(energy) + weight * np.mean(force))


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
@pytest.mark.parametrize("batch_size", [5, 7])
def test_predictions_are_those_of_the_structures_one_by_one(
    model_config: ModelConfig,
    params: Params,
    labelled: Structures,
    make_batch: MakeBatch,
    contents: str,
    batch_size: int,
) -> None:
    batch = make_batch(contents=contents, batch_size=batch_size)
    energies, forces = build_predict_step(model_config, forces=True)(params, batch)
    for m, (energy, force) in enumerate(one_by_one(model_config, params, labelled)):
        torch.testing.assert_close(energies[m], energy, rtol=0, atol=1e-10)
        squared = (forces[batch.structure_index == m] ** 2).sum()
        torch.testing.assert_close(squared, (force**2).sum(), rtol=1e-9, atol=0)


def test_eval_step_sums_the_errors_of_the_prediction(
    model_config: ModelConfig, params: Params, labelled: Structures, make_batch: MakeBatch
) -> None:
    found = summary(build_eval_step(model_config, forces=True)(params, make_batch(batch_size=6)))
    single = one_by_one(model_config, params, labelled)
    largest = max(abs(energy.item() - labelled.energies[m, 0]) for m, (energy, _) in enumerate(single))
    squares = np.concatenate([forces.numpy() for _, forces in single]) - labelled.forces[:, 0]
    assert found["energy_max"] == pytest.approx(23.0605480 * largest, rel=1e-7)
    assert found["force_rmse"] == pytest.approx(23.0605480 * np.sqrt(np.mean(squares**2)), rel=1e-7)


@pytest.mark.parametrize(("contents", "weight"), [("aevs", None), ("jacobians", 0.3), ("positions", 0.3)])
def test_gradient_is_that_of_the_loss(
    model_config: ModelConfig,
    params: Params,
    labelled: Structures,
    make_batch: MakeBatch,
    contents: str,
    weight: float | None,
) -> None:
    """Central differences of a loss that is written out structure by structure."""
    state = TrainState(params, descent.init(params.networks), torch.tensor(1.0, dtype=torch.float64))
    moved, _ = build_train_step(model_config, descent, weight)(state, make_batch(contents=contents, batch_size=7))
    step = 1e-5
    places = [
        (leaf, place) for leaf, tensor in enumerate(tree_leaves(params.networks)) for place in (0, -1, len(tensor) // 2)
    ]
    for leaf, place in places:

        def loss(shift: float, leaf: int = leaf, place: int = place) -> float:
            leaves = [tensor.clone() for tensor in tree_leaves(params.networks)]
            leaves[leaf].view(-1)[place] += shift
            flat = iter(leaves)
            networks: Networks = tree_map(lambda _: next(flat), params.networks)
            return plain_loss(model_config, Params(networks, params.self_energies), labelled, weight or 0.0)

        expected = (loss(step) - loss(-step)) / (2 * step)
        before, after = (
            tree_leaves(networks)[leaf].view(-1)[place] for networks in (params.networks, moved.params.networks)
        )
        assert (before - after).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("contents", "weight"), [("aevs", None), ("jacobians", 0.3), ("positions", 0.3)])
def test_a_step_is_pure(
    model_config: ModelConfig, state: TrainState, make_batch: MakeBatch, contents: str, weight: float | None
) -> None:
    batch = make_batch(contents=contents)
    before = tree_map(torch.clone, (state, batch))
    step = build_train_step(model_config, adam(), weight)
    first, second = step(state, batch), step(state, batch)
    for then, now in zip(tree_leaves(before), tree_leaves((state, batch)), strict=True):
        assert torch.equal(then, now)
    for one, other in zip(*(filter(torch.is_tensor, tree_leaves(found)) for found in (first, second)), strict=True):
        assert torch.equal(one, other)
    moved = zip(tree_leaves(first[0].params.networks), tree_leaves(state.params.networks), strict=True)
    assert all((now - then).abs().max() > 1e-5 for now, then in moved)
    assert torch.equal(first[0].params.self_energies, state.params.self_energies)


def test_force_paths_give_the_same_state(model_config: ModelConfig, state: TrainState, make_batch: MakeBatch) -> None:
    step = build_train_step(model_config, adam(), 0.3)
    found = []
    for contents in ("jacobians", "positions"):
        moved = state
        for index in ([0, 1, 2], [3, 4], [1, 3, 0]):
            moved, sums = step(moved, make_batch(index, contents, batch_size=3))
        found.append((moved, sums))
    for one, other in zip(*map(tree_leaves, found), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
def test_single_precision(model_config: ModelConfig, state: TrainState, make_batch: MakeBatch, contents: str) -> None:
    networks = tree_map(torch.Tensor.float, state.params.networks)
    single = TrainState(Params(networks, state.params.self_energies), adam().init(networks), state.learning_rate)
    step = build_train_step(model_config, adam(), 0.3)
    moved, sums = step(single, make_batch(contents=contents, dtype=torch.float32))
    expected, expected_sums = step(state, make_batch(contents=contents))
    assert {leaf.dtype for leaf in tree_leaves(moved.params.networks)} == {torch.float32}
    assert moved.params.self_energies.dtype == torch.float64
    assert summary(sums) == pytest.approx(summary(expected_sums), rel=1e-4)
    for one, other in zip(tree_leaves(moved.params.networks), tree_leaves(expected.params.networks), strict=True):
        assert (one - other).abs().max() < 1e-4


def test_sums_are_those_of_before_the_update(
    model_config: ModelConfig, state: TrainState, make_batch: MakeBatch
) -> None:
    batch = make_batch()
    _, sums = build_train_step(model_config, adam(), 0.3)(with_rate(state, 0.5), batch)
    assert summary(sums) == pytest.approx(summary(build_eval_step(model_config, forces=True)(state.params, batch)))


def test_steps_lower_the_loss(
    model_config: ModelConfig, state: TrainState, labelled: Structures, make_batch: MakeBatch
) -> None:
    step, batch, moved = build_train_step(model_config, adam(), 0.3), make_batch(), with_rate(state, 0.02)
    for _ in range(30):
        moved, _ = step(moved, batch)
    assert isinstance(moved.optimizer, AdamState)
    before, after = (plain_loss(model_config, each.params, labelled, 0.3) for each in (state, moved))
    assert after < 0.8 * before


def test_forces_from_aevs_alone_are_refused(
    model_config: ModelConfig, state: TrainState, make_batch: MakeBatch
) -> None:
    with pytest.raises(TypeError, match="Jacobians or positions"):
        build_train_step(model_config, adam(), 0.3)(state, make_batch(contents="aevs"))
