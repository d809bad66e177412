from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import assert_same, differ
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.potential.energy import init_params
from pykinml_func.training.checkpoint import Progress, load_checkpoint, newest_checkpoint, save_checkpoint
from pykinml_func.training.metrics import stack_sums, unstack_sums
from pykinml_func.training.model_file import load_model, save_model
from pykinml_func.training.optimizers import adam, sgd, soap
from pykinml_func.training.schedules import ScheduleState
from pykinml_func.training.step import Objective, build_train_step, init_state
from pykinml_func.types import Batch, ErrorSums, Params, StepSums, Structures, TrainState

Rewrite = Callable[..., Path]
MakeBatch = Callable[..., Batch]
LEARNED = Objective(forces=True, learned=True)
FRESH = ScheduleState(1e-3)


@pytest.fixture
def model_file(tmp_path: Path, model_config: ModelConfig, params: Params) -> Path:
    save_model(tmp_path / "model.safetensors", model_config, params)
    return tmp_path / "model.safetensors"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@pytest.fixture
def rewrite(model_file: Path) -> Rewrite:
    """The model file with some tensors or metadata replaced, or left out where None."""

    def rewritten(tensors: dict[str, torch.Tensor | None] | None = None, **metadata: str | None) -> Path:
        kept = {**load_file(model_file), **(tensors or {})}
        told = {**metadata_of(model_file), **metadata}
        save_file(
            {name: tensor for name, tensor in kept.items() if tensor is not None},
            model_file,
            {name: text for name, text in told.items() if text is not None},
        )
        return model_file

    return rewritten


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("biases", [True, False])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, biases: bool, dtype: torch.dtype) -> None:
    aev = AEVConfig(elements=("C", "H", "O"), n_radial=3, angular_sections=(0.1, 1.7), n_angular_radial=2, beta=0.7)
    config = ModelConfig(aev=aev, neurons=(4, 1), activations=("silu", "identity"), biases=biases)
    params = init_params(config, torch.Generator().manual_seed(2), dtype)
    params = Params(params.networks, torch.tensor([[-1036.123456789012, -13.5, 1 / 3]], dtype=torch.float64))
    save_model(tmp_path / "new" / "model.safetensors", config, params)
    loaded_config, loaded = load_model(str(tmp_path / "new" / "model.safetensors"))
    assert loaded_config == config
    assert len(loaded.networks[0].biases) == (2 if biases else 0)
    assert [leaf.dtype for leaf in tree_leaves(loaded)] == [leaf.dtype for leaf in tree_leaves(params)]
    assert_same(params, loaded)


def test_metadata_tell_the_units_and_the_whole_configuration(model_file: Path, model_config: ModelConfig) -> None:
    told = metadata_of(model_file)
    assert json.loads(told["units"]) == {"energy": "eV", "length": "Å"}
    assert ModelConfig.model_validate_json(told["model"]) == model_config
    assert json.loads(told["model"])["aev"]["elements"] == ["C", "H"]


def test_nothing_is_pickled(model_file: Path) -> None:
    """A safetensors file is the length of its JSON header, the header, and the bytes that it tells of."""
    content = model_file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert max(ends) == len(content) - 8 - length
    assert not zipfile.is_zipfile(model_file)
    with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError)):
        pickle.loads(content)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.pt"
    torch.save({"weights": Trap()}, path)
    with pytest.raises(ModelError, match=r"must be a model of `pykinml train`"):
        load_model(path)
    assert not (tmp_path / "ran").exists()


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
    save_checkpoint(directory, config, state, schedule, optimizer, done)
    return newest_checkpoint(directory)


def test_a_model_of_several_levels_comes_back_bit_for_bit(tmp_path: Path, model_config: ModelConfig) -> None:
    """A level above the lowest has inputs of another length."""
    config = model_config.model_copy(update={"fidelities": (0, 2, 5), "pass_energy": True, "sum_levels": False})
    drawn = init_params(config, torch.Generator().manual_seed(2))
    params = Params(drawn.networks, torch.randn(3, 2, dtype=torch.float64))
    save_model(tmp_path / "model.safetensors", config, params)
    loaded_config, loaded = load_model(tmp_path / "model.safetensors")
    assert loaded_config == config and len(loaded.networks) == 3
    assert loaded.networks[1].weights[0].shape[2] == loaded.networks[0].weights[0].shape[2] + 1
    assert_same(params, loaded)


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
    assert found.schedule == schedule
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
    save_file(load_file(path), path, {**metadata_of(path), "training": training, "format_version": "2"})
    assert_same(load_model(path)[1], state.params)
    found = load_checkpoint(path, adam(), "adam", 2)
    assert found.last == () and found.schedule == ScheduleState(5e-4, 7, 1.25, 3) and found.progress is None
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


def test_a_model_has_no_optimizer(model_file: Path) -> None:
    with pytest.raises(ModelError, match=r"must be a checkpoint to keep its optimizer, got a model alone"):
        load_checkpoint(model_file, adam(), "adam", 0)


def of_format_1(path: Path, **metadata: str) -> Path:
    """The file as the first version of the package wrote it: no levels, in names, shapes and settings."""
    tensors, told = load_file(path), metadata_of(path)
    model = json.loads(told["model"])
    for name in ("pass_aev", "pass_energy", "sum_levels", "fidelities", "baseline"):
        del model[name]
    old = {name.removeprefix("networks.0."): tensor for name, tensor in tensors.items()}
    old["self_energies"] = old["self_energies"][0].clone()
    save_file(old, path, {**told, "model": json.dumps(model), "format_version": "1", **metadata})
    return path


def test_a_model_of_format_1_still_loads(model_file: Path, model_config: ModelConfig, params: Params) -> None:
    config, loaded = load_model(of_format_1(model_file))
    assert "weights.0" in load_file(model_file) and load_file(model_file)["self_energies"].shape == (2,)
    assert config == model_config
    assert_same(loaded, params)


def test_a_checkpoint_of_format_1_loads_as_a_model_and_tells_that_its_optimizer_cannot_be_kept(
    model_file: Path, params: Params
) -> None:
    plateau = {"learning_rate": 5e-4, "best": 1.25, "epochs_without_improvement": 3}
    path = of_format_1(model_file, training=json.dumps({"epoch": 7, "plateau": plateau}))
    assert_same(load_model(path)[1], params)
    with pytest.raises(ModelError, match=r"older version.*leave keep_optimizer out"):
        load_checkpoint(path, adam(), "adam", 0)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model file .*nothing\.safetensors"):
        load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(ModelError, match="no model file"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"text, not tensors", b"\xff" * 64])
def test_a_file_of_another_kind_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"must be a model of `pykinml train`"):
        load_model(path)


def test_safetensors_of_another_program_are_told(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="safetensors file of something else"):
        load_model(path)


def test_a_newer_format_asks_for_an_upgrade(rewrite: Rewrite) -> None:
    with pytest.raises(ModelError, match=r"model format 5 \(pykinml-func 9\.9\).*upgrade"):
        load_model(rewrite(format_version="5", package_version="9.9"))


@pytest.mark.parametrize("lost", [{"model": None}, {"format_version": None}, {"format_version": "one"}])
def test_damaged_metadata_are_told(rewrite: Rewrite, lost: dict[str, str | None]) -> None:
    with pytest.raises(ModelError, match="damaged"):
        load_model(rewrite(**lost))


def test_an_unusable_configuration_is_told_without_jargon(rewrite: Rewrite) -> None:
    with pytest.raises(ModelError, match=r"configuration that cannot be used: neurons\.0: .*greater than 0") as caught:
        load_model(rewrite(model=json.dumps({"neurons": [-3, 1], "activations": ["tanh", "identity"]})))
    assert "http" not in str(caught.value)


@pytest.mark.parametrize("name", ["networks.0.weights.1", "networks.0.biases.2", "self_energies"])
def test_a_missing_tensor_is_named(rewrite: Rewrite, name: str) -> None:
    with pytest.raises(ModelError, match=f"lacks the tensor '{name}'"):
        load_model(rewrite({name: None}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("networks.0.weights.1", (2, 3, 6)),
        ("networks.0.biases.0", (2, 4)),
        ("networks.0.biases.2", (1, 1)),
        ("self_energies", (3, 1)),
    ],
)
def test_a_tensor_of_another_shape_is_named(rewrite: Rewrite, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=f"{name} of shape .* got \\({shape[0]},"):
        load_model(rewrite({name: torch.zeros(shape, dtype=torch.float64)}))


def test_a_failed_write_keeps_the_old_model(
    model_file: Path, model_config: ModelConfig, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, content: bytes) -> int:
        raise OSError(f"disk full after {len(content)}")

    before = model_file.read_bytes()
    other: Params = tree_map(lambda leaf: 2 * leaf, params)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="disk full"):
            save_model(model_file, model_config, other)
    assert model_file.read_bytes() == before
