from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.config import ModelConfig
from pykinml_func.potential.forces import level_energies_and_forces
from pykinml_func.training.metrics import add_sums, summary
from pykinml_func.training.optimizers import adam, sgd
from pykinml_func.training.step import (
    Objective,
    build_eval_step,
    build_gradients,
    build_predict_step,
    build_train_step,
    init_state,
)
from pykinml_func.types import Batch, Params, StepSums, Structures, Trainable, TrainState

MakeBatch = Callable[..., Batch]
SPECIES = {6: 0, 1: 1}
ENERGIES, FORCES = Objective(), Objective(forces=True)
LEARNED, LEARNED_FORCES = Objective(learned=True), Objective(forces=True, learned=True)
PATHS = [("aevs", ENERGIES), ("jacobians", FORCES), ("positions", FORCES)]
CHAIN_PATHS = [
    ("aevs", ENERGIES),
    ("aevs", LEARNED),
    ("jacobians", FORCES),
    ("positions", Objective(forces=True, force_weight=0.6)),
    ("jacobians", LEARNED_FORCES),
    ("positions", LEARNED_FORCES),
]


def with_rate(state: TrainState, rate: float) -> TrainState:
    return state._replace(learning_rate=torch.tensor(rate, dtype=torch.float64))


def one_by_one(config: ModelConfig, params: Params, structures: Structures) -> list[tuple[np.ndarray, np.ndarray]]:
    """Energies less self energies (L,), and forces (n,L,3), of each structure by itself."""
    found = []
    for start, end in pairwise(structures.offsets):
        species = torch.tensor([SPECIES[number] for number in structures.numbers[start:end].tolist()])
        positions = torch.from_numpy(structures.positions[start:end])
        energies, forces = level_energies_and_forces(config, params, species, positions)
        own = energies - params.self_energies[:, species].sum(dim=1)
        found.append((own.numpy(), forces.movedim(0, 1).numpy()))
    return found


def plain_losses(config: ModelConfig, params: Params, structures: Structures) -> np.ndarray:
    """(2,L): mean (E - E')², and the mean over structures of the mean (F - F')² of their components."""
    found = one_by_one(config, params, structures)
    energy = np.array([energies for energies, _ in found]) - structures.energies
    parts = zip(found, pairwise(structures.offsets), strict=True)
    force = [((forces - structures.forces[a:b]) ** 2).mean(axis=(0, 2)) for (_, forces), (a, b) in parts]
    return np.stack([np.nanmean(energy**2, axis=0), np.nanmean(force, axis=0)])


def plain_loss(
    config: ModelConfig, trainable: Trainable, params: Params, structures: Structures, objective: Objective
) -> float:
    energy, force = plain_losses(config, Params(trainable.networks, params.self_energies), structures)
    if objective.learned:
        s = trainable.log_variances.numpy()
        losses = np.concatenate([energy, force]) if objective.forces else energy
        return float((np.exp(-s) * losses + s).sum())
    w = objective.force_weight if objective.forces else 0.0
    return float(((1 - w) * energy + w * force).sum())


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
@pytest.mark.parametrize("batch_size", [5, 7])
def test_predictions_are_those_of_the_structures_one_by_one(
    chain_config: ModelConfig,
    chain_params: Params,
    chain_labelled: Structures,
    make_batch: MakeBatch,
    contents: str,
    batch_size: int,
) -> None:
    batch = make_batch(contents=contents, batch_size=batch_size, structures=chain_labelled)
    energies, forces = build_predict_step(chain_config, forces=True)(chain_params, batch)
    assert energies.shape == (batch_size, 2)
    for m, (energy, force) in enumerate(one_by_one(chain_config, chain_params, chain_labelled)):
        np.testing.assert_allclose(energies[m].numpy(), energy, rtol=0, atol=1e-10)
        squared = (forces[batch.structure_index == m] ** 2).sum(dim=(0, 2)).numpy()
        np.testing.assert_allclose(squared, (force**2).sum(axis=(0, 2)), rtol=1e-9)


def test_eval_step_sums_the_errors_of_the_prediction(
    model_config: ModelConfig, params: Params, labelled: Structures, make_batch: MakeBatch
) -> None:
    found = summary(build_eval_step(model_config, forces=True)(params, make_batch(batch_size=6)))
    single = one_by_one(model_config, params, labelled)
    largest = max(abs(energy[0] - labelled.energies[m, 0]) for m, (energy, _) in enumerate(single))
    squares = np.concatenate([forces for _, forces in single]) - labelled.forces
    assert found["energy_max"] == pytest.approx(23.0605480 * largest, rel=1e-7)
    assert found["force_rmse"] == pytest.approx(23.0605480 * np.sqrt(np.mean(squares**2)), rel=1e-7)


def assert_gradient(
    config: ModelConfig, params: Params, structures: Structures, batch: Batch, objective: Objective
) -> None:
    """A step of plain gradient descent at rate 1 against central differences of the loss written out one by one, along
    random directions.
    """
    optimizer, generator = sgd(momentum=0.0), torch.Generator().manual_seed(3)
    state = init_state(params, optimizer, objective, 1.0)
    state = state._replace(log_variances=state.log_variances + torch.arange(len(state.log_variances)) / 4 - 0.3)
    start = Trainable(state.params.networks, state.log_variances)
    moved, _ = build_train_step(config, optimizer, objective)(state, batch)
    gradient = tree_map(
        lambda before, after: before - after, start, Trainable(moved.params.networks, moved.log_variances)
    )

    def slope(direction: Trainable, step: float = 1e-5) -> float:
        ends = [tree_map(lambda p, d, h=h: p + h * d, start, direction) for h in (step, -step)]
        ahead, behind = (plain_loss(config, end, params, structures, objective) for end in ends)
        return (ahead - behind) / (2 * step)

    for _ in range(4):
        direction = tree_map(lambda p: torch.randn(p.shape, generator=generator, dtype=p.dtype), start)
        along = sum((g * d).sum().item() for g, d in zip(*map(tree_leaves, (gradient, direction)), strict=True))
        assert along == pytest.approx(slope(direction), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("contents", "objective"), [*PATHS, ("jacobians", LEARNED_FORCES)])
def test_gradient_is_that_of_the_loss(
    model_config: ModelConfig,
    params: Params,
    labelled: Structures,
    make_batch: MakeBatch,
    contents: str,
    objective: Objective,
) -> None:
    assert_gradient(model_config, params, labelled, make_batch(contents=contents, batch_size=7), objective)


@pytest.mark.parametrize(("contents", "objective"), CHAIN_PATHS)
def test_gradient_of_several_levels_with_missing_labels(
    chain_config: ModelConfig,
    chain_params: Params,
    chain_labelled: Structures,
    make_batch: MakeBatch,
    contents: str,
    objective: Objective,
) -> None:
    batch = make_batch(contents=contents, batch_size=7, structures=chain_labelled)
    assert_gradient(chain_config, chain_params, chain_labelled, batch, objective)


@pytest.mark.parametrize(("contents", "objective"), PATHS)
def test_a_missing_label_is_as_if_its_structure_were_not_there(
    model_config: ModelConfig,
    state: TrainState,
    labelled: Structures,
    make_batch: MakeBatch,
    contents: str,
    objective: Objective,
) -> None:
    energies, forces = labelled.energies.copy(), labelled.forces.copy()
    energies[1] = forces[labelled.offsets[1] : labelled.offsets[2]] = np.nan
    holed = labelled._replace(energies=energies, forces=forces)
    optimizer = sgd(momentum=0.0)
    step = build_train_step(model_config, optimizer, objective)
    state = init_state(state.params, optimizer, objective, 1.0)
    with_hole, sums = step(state, make_batch(contents=contents, structures=holed))
    without, expected = step(state, make_batch([0, 2, 3, 4], contents))
    assert summary(sums) == pytest.approx(summary(expected), rel=1e-10)
    for one, other in zip(tree_leaves(with_hole.params), tree_leaves(without.params), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_task_without_labels_in_a_batch_keeps_its_weight(
    chain_config: ModelConfig, chain_params: Params, chain_labelled: Structures, make_batch: MakeBatch
) -> None:
    """Energies of levels 0 and 3, then forces of both: structure 2 has none of level 3, structure 3 no forces there."""
    optimizer = adam()
    step = build_train_step(chain_config, optimizer, LEARNED_FORCES)
    state = init_state(chain_params, optimizer, LEARNED_FORCES, 1e-3)
    assert state.log_variances.tolist() == [0, 0, 0, 0]
    for index, still in (([2], [False, True, False, True]), ([3], [False, False, False, True])):
        moved, _ = step(state, make_batch(index, batch_size=2, structures=chain_labelled))
        assert (moved.log_variances == 0).tolist() == still


@pytest.mark.parametrize(("objective", "n_tasks"), [(FORCES, 0), (LEARNED, 2), (LEARNED_FORCES, 4)])
def test_there_is_a_learned_weight_a_task(objective: Objective, n_tasks: int, chain_params: Params) -> None:
    assert objective.n_tasks(2) == n_tasks
    assert init_state(chain_params, adam(), objective, 1e-3).log_variances.shape == (n_tasks,)


@pytest.mark.parametrize(("contents", "objective"), [*PATHS, ("jacobians", LEARNED_FORCES)])
def test_a_step_is_pure(
    model_config: ModelConfig, params: Params, make_batch: MakeBatch, contents: str, objective: Objective
) -> None:
    batch, state = make_batch(contents=contents), init_state(params, adam(), objective, 1e-3)
    before = tree_map(torch.clone, (state, batch))
    step = build_train_step(model_config, adam(), objective)
    first, second = step(state, batch), step(state, batch)
    for then, now in zip(tree_leaves(before), tree_leaves((state, batch)), strict=True):
        assert torch.equal(then, now)
    for one, other in zip(*(filter(torch.is_tensor, tree_leaves(found)) for found in (first, second)), strict=True):
        assert torch.equal(one, other)
    moved = zip(tree_leaves(first[0].params.networks), tree_leaves(state.params.networks), strict=True)
    assert all((now - then).abs().max() > 1e-5 for now, then in moved)
    assert torch.equal(first[0].params.self_energies, state.params.self_energies)


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
@pytest.mark.parametrize(("contents", "objective"), CHAIN_PATHS)
def test_the_gradients_of_all_shares_are_that_of_the_whole_batch(
    chain_config: ModelConfig,
    chain_params: Params,
    chain_labelled: Structures,
    make_batch: MakeBatch,
    contents: str,
    objective: Objective,
    ranks: int,
) -> None:
    """And so are the sums over the errors. Shares are of unequal sizes; of seven ranks two have none."""
    state = init_state(chain_params, adam(), objective, 1e-3)
    trainable = state.trainable._replace(log_variances=state.log_variances + torch.arange(len(state.log_variances)) / 4)
    gradients_of = build_gradients(chain_config, objective)

    def found(share: tuple[int, int]) -> tuple[Trainable, StepSums]:
        batch = make_batch(contents=contents, structures=chain_labelled, share=share)
        return gradients_of(trainable, batch, state.force_weight)

    whole, sums = found((0, 1))
    parts = [found((rank, ranks)) for rank in range(ranks)]
    together = tree_map(lambda *each: torch.stack(each).sum(dim=0), *(gradients for gradients, _ in parts))
    for mine, theirs in zip(tree_leaves(together), tree_leaves(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert summary(add_sums(own for _, own in parts), (0, 3)) == pytest.approx(summary(sums, (0, 3)), rel=1e-12)


def test_force_paths_give_the_same_state(
    chain_config: ModelConfig, chain_params: Params, chain_labelled: Structures, make_batch: MakeBatch
) -> None:
    step = build_train_step(chain_config, adam(), LEARNED_FORCES)
    found = []
    for contents in ("jacobians", "positions"):
        moved = init_state(chain_params, adam(), LEARNED_FORCES, 1e-3)
        for index in ([0, 1, 2], [3, 4], [1, 3, 0]):
            moved, sums = step(moved, make_batch(index, contents, batch_size=3, structures=chain_labelled))
        found.append((moved, sums))
    for one, other in zip(*map(tree_leaves, found), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("contents", ["jacobians", "positions"])
def test_single_precision(model_config: ModelConfig, state: TrainState, make_batch: MakeBatch, contents: str) -> None:
    networks = tree_map(torch.Tensor.float, state.params.networks)
    single = init_state(Params(networks, state.params.self_energies), adam(), LEARNED_FORCES, 1e-3)
    double = init_state(state.params, adam(), LEARNED_FORCES, 1e-3)
    step = build_train_step(model_config, adam(), LEARNED_FORCES)
    moved, sums = step(single, make_batch(contents=contents, dtype=torch.float32))
    expected, expected_sums = step(double, make_batch(contents=contents))
    assert {leaf.dtype for leaf in tree_leaves((moved.params.networks, moved.log_variances))} == {torch.float32}
    assert moved.params.self_energies.dtype == torch.float64
    assert summary(sums) == pytest.approx(summary(expected_sums), rel=1e-4)
    for one, other in zip(tree_leaves(moved.params.networks), tree_leaves(expected.params.networks), strict=True):
        assert (one - other).abs().max() < 1e-4


def test_sums_are_those_of_before_the_update(
    model_config: ModelConfig, state: TrainState, make_batch: MakeBatch
) -> None:
    batch = make_batch()
    _, sums = build_train_step(model_config, adam(), FORCES)(with_rate(state, 0.5), batch)
    assert summary(sums) == pytest.approx(summary(build_eval_step(model_config, forces=True)(state.params, batch)))


def test_steps_lower_the_loss(
    model_config: ModelConfig, state: TrainState, labelled: Structures, make_batch: MakeBatch
) -> None:
    step, batch, moved = build_train_step(model_config, adam(), FORCES), make_batch(), with_rate(state, 0.02)
    for _ in range(30):
        moved, _ = step(moved, batch)
    assert moved.optimizer.step.item() == 30
    before, after = (
        (np.array([[0.7], [0.3]]) * plain_losses(model_config, each.params, labelled)).sum() for each in (state, moved)
    )
    assert after < 0.8 * before


def test_forces_from_aevs_alone_are_refused(
    model_config: ModelConfig, state: TrainState, make_batch: MakeBatch
) -> None:
    with pytest.raises(TypeError, match="Jacobians or positions"):
        build_train_step(model_config, adam(), FORCES)(state, make_batch(contents="aevs"))
