from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_files import metadata_of, of_format_1, rewritten
from runs import assert_same, differ
from torch.utils._pytree import tree_leaves, tree_map_only

from pykinml_func.config import ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.training.checkpoint import Progress, load_checkpoint, newest_checkpoint, save_checkpoint
from pykinml_func.training.metrics import stack_sums, unstack_sums
from pykinml_func.training.model_file import load_model, save_model
from pykinml_func.training.optimizers import adam, sgd, soap
from pykinml_func.training.schedules import ScheduleState
from pykinml_func.training.step import Objective, build_train_step, init_state
from pykinml_func.types import Batch, ErrorSums, Params, StepSums, Structures, TrainState

MakeBatch = Callable[..., Batch]
LEARNED = Objective(forces=True, learned=True)
FRESH = ScheduleState(1e-3)


def trained(config: ModelConfig, params: Params, batch: Batch, ema: float = 0.0) -> TrainState:
    """The state after two steps."""
    state = init_state(params, adam(), LEARNED, 1e-3, ema)
    step = build_train_step(config, adam(), LEARNED, ema)
    for _ in range(2):
        state, _ = step(state, batch)
    return state


def save(
    directory: Path,
    config: ModelConfig,
    state: TrainState,
    schedule: ScheduleState = FRESH,
    optimizer: str = "adam",
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint, of the seventh epoch unless `progress` says otherwise. Returns its path."""
    done = progress or Progress(7, 0, "some data", state.params, None)
    save_checkpoint(directory, config, state, [schedule], optimizer, done)
    return newest_checkpoint(directory)


def test_a_checkpoint_holds_the_training_state_and_loads_as_a_model(
    tmp_path: Path, chain_config: ModelConfig, chain_params: Params, make_batch: MakeBatch, chain_labelled: Structures
) -> None:
    state = trained(chain_config, chain_params, make_batch(structures=chain_labelled))
    schedule = ScheduleState(5e-4, 7, 1.25, 3)
    path = save(tmp_path, chain_config, state, schedule)
    assert path == tmp_path / "checkpoints" / "epoch_00007.safetensors"
    config, params = load_model(path)
    assert config == chain_config
    assert_same(state.params, params)
    found = load_checkpoint(path, adam(), "adam", 4)
    assert found.schedules == (schedule,)
    assert found.optimizer.step.item() == 2
    assert_same(found.log_variances, state.log_variances)
    assert_same(found.optimizer, state.optimizer)
    assert all(leaf.abs().max() > 0 for leaf in (*tree_leaves(found.optimizer.moments), found.log_variances))


def test_a_checkpoints_model_is_the_running_mean_where_one_is_taken(
    tmp_path: Path, model_config: ModelConfig, params: Params, make_batch: MakeBatch
) -> None:
    state = trained(model_config, params, make_batch(), ema=0.9)
    path = save(tmp_path, model_config, state)
    assert differ(state.average, state.params.networks)
    assert_same(load_model(path)[1], Params(state.average, state.params.self_energies))
    assert_same(load_checkpoint(path, adam(), "adam", 2).last, state.params.networks)


def test_a_checkpoint_of_format_2_keeps_its_optimizer(
    tmp_path: Path, model_config: ModelConfig, params: Params, make_batch: MakeBatch
) -> None:
    """It knows neither means of the networks nor cosines, nor how far its run was."""
    state = trained(model_config, params, make_batch())
    path = save(tmp_path, model_config, state, ScheduleState(5e-4, 7, 1.25, 3))
    old = {"learning_rate": 5e-4, "epochs": 7, "best": 1.25, "epochs_without_improvement": 3}
    training = json.dumps({"optimizer": "adam", "schedule": old})
    rewritten(path, training=training, format_version="2")
    assert_same(load_model(path)[1], state.params)
    found = load_checkpoint(path, adam(), "adam", 2)
    assert found.last == () and found.schedules == (ScheduleState(5e-4, 7, 1.25, 3),) and found.progress is None
    assert_same(found.optimizer, state.optimizer)


def test_soap_comes_back_bit_for_bit(
    tmp_path: Path, model_config: ModelConfig, params: Params, make_batch: MakeBatch
) -> None:
    state = init_state(params, soap(), Objective(forces=True), 1e-3)
    state, _ = build_train_step(model_config, soap(), Objective(forces=True))(state, make_batch())
    path = save(tmp_path, model_config, state, optimizer="soap")
    assert_same(load_checkpoint(path, soap(), "soap", 0).optimizer, state.optimizer)


def test_sgd_keeps_its_one_moment(
    tmp_path: Path, model_config: ModelConfig, params: Params, make_batch: MakeBatch
) -> None:
    state = init_state(params, sgd(), Objective(), 1e-3)
    state, _ = build_train_step(model_config, sgd(), Objective())(state, make_batch(contents="aevs"))
    found = load_checkpoint(save(tmp_path, model_config, state, optimizer="sgd"), sgd(), "sgd", 0)
    assert_same(found.optimizer, state.optimizer)


@pytest.mark.parametrize("contents", ["aevs", "jacobians"])
def test_progress_within_an_epoch_comes_back(
    tmp_path: Path, model_config: ModelConfig, params: Params, make_batch: MakeBatch, contents: str
) -> None:
    """With the sums over the errors of each batch that is done, and the best parameters, which are others."""
    objective = Objective(forces=contents != "aevs")
    step, state, found = build_train_step(model_config, adam(), objective), init_state(params, adam(), objective, 1), []
    for index in ([0, 1], [2, 3, 4]):
        state, sums = step(state, make_batch(index, contents))
        found.append(sums)
    path = save(tmp_path, model_config, state, progress=Progress(2, 2, "some data", params, stack_sums(found)))
    assert path.name == "epoch_00002_batch_0000002.safetensors"
    progress = load_checkpoint(path, adam(), "adam", 0).progress
    assert progress is not None and progress[:3] == (2, 2, "some data") and progress.sums is not None
    assert_same(progress.best, params)
    assert_same(load_model(path)[1], state.params)
    for mine, theirs in zip(unstack_sums(progress.sums), found, strict=True):
        assert (mine.force is None) == (theirs.force is None) == (contents == "aevs")
        assert_same([part for part in mine if part], [part for part in theirs if part])


def test_the_newest_checkpoint_is_that_of_the_latest_batch(
    tmp_path: Path, model_config: ModelConfig, state: TrainState
) -> None:
    """One from within an epoch makes way for the next one; those of whole epochs stay."""
    sums = stack_sums([StepSums(ErrorSums(*torch.ones(4, 1, dtype=torch.float64)), None)] * 12)
    for epoch, batch in ((9, 0), (10, 2), (10, 12), (11, 0), (11, 1)):
        part = tree_map_only(torch.Tensor, lambda column, k=batch: column[:k], sums) if batch else None
        newest = save(tmp_path, model_config, state, progress=Progress(epoch, batch, "", state.params, part))
        assert newest.stem == f"epoch_{epoch:05d}" + (f"_batch_{batch:07d}" if batch else "")
    left = sorted(path.stem for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["epoch_00009", "epoch_00011", "epoch_00011_batch_0000001"]


def test_a_directory_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must be the directory of a run that was cut short, got no checkpoints in"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("optimizer_name", "n_tasks", "told"),
    [
        ("adamw", 2, r"holds the state of adam, and this run's optimizer is adamw; take that one, or leave"),
        ("adam", 4, r"holds 2 learned loss weights, and this run has 4; train to the same labels, or leave"),
        ("adam", 0, r"holds 2 learned loss weights, and this run has 0"),
    ],
)
def test_a_state_of_other_training_is_refused(
    tmp_path: Path,
    model_config: ModelConfig,
    params: Params,
    make_batch: MakeBatch,
    optimizer_name: str,
    n_tasks: int,
    told: str,
) -> None:
    path = save(tmp_path, model_config, trained(model_config, params, make_batch()))
    with pytest.raises(ModelError, match=told):
        load_checkpoint(path, adam(), optimizer_name, n_tasks)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told[:-5],
        lambda _: "[1, 2]",
        lambda told: told.replace('"optimizer"', '"optimiser"'),
        lambda told: told.replace('"batch"', '"batches"'),
        lambda told: told.replace('"best"', '"least"'),
        lambda told: told.replace('"schedules": [', '"schedules": [1, '),
    ],
)
def test_a_damaged_state_of_training_is_told(
    tmp_path: Path, model_config: ModelConfig, params: Params, make_batch: MakeBatch, change: Callable[[str], str]
) -> None:
    path = save(tmp_path, model_config, trained(model_config, params, make_batch()))
    rewritten(path, training=change(metadata_of(path)["training"]))
    with pytest.raises(ModelError, match=r"state of training that cannot be read .* it is damaged: take another"):
        load_checkpoint(path, adam(), "adam", 2)


def test_as_many_schedules_and_loss_weights_as_members(
    tmp_path: Path, model_config: ModelConfig, params: Params, make_batch: MakeBatch
) -> None:
    path = save(tmp_path, model_config, trained(model_config, params, make_batch()))
    training = json.loads(metadata_of(path)["training"])
    rewritten(path, {"log_variances": torch.zeros(3, 2)})
    with pytest.raises(ModelError, match=r"must hold log_variances of shape \(2,\), got \(3, 2\)"):
        load_checkpoint(path, adam(), "adam", 2)
    rewritten(path, training=json.dumps(training | {"schedules": training["schedules"] * 2}))
    with pytest.raises(ModelError, match=r"holds 2 schedules for 1 members; it is damaged"):
        load_checkpoint(path, adam(), "adam", 2)


def test_a_model_has_no_optimizer(tmp_path: Path, model_config: ModelConfig, params: Params) -> None:
    save_model(tmp_path / "model.safetensors", model_config, params)
    with pytest.raises(ModelError, match=r"must be a checkpoint to keep its optimizer, got a model alone"):
        load_checkpoint(tmp_path / "model.safetensors", adam(), "adam", 0)


def test_a_checkpoint_of_format_1_loads_as_a_model_and_tells_that_its_optimizer_cannot_be_kept(
    tmp_path: Path, model_config: ModelConfig, params: Params
) -> None:
    save_model(tmp_path / "model.safetensors", model_config, params)
    plateau = {"learning_rate": 5e-4, "best": 1.25, "epochs_without_improvement": 3}
    path = of_format_1(tmp_path / "model.safetensors", training=json.dumps({"epoch": 7, "plateau": plateau}))
    assert_same(load_model(path)[1], params)
    with pytest.raises(ModelError, match=r"older version.*leave keep_optimizer out"):
        load_checkpoint(path, adam(), "adam", 0)
