from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.potential.energy import init_params
from pykinml_func.training.checkpoint import load_model, save_checkpoint, save_model
from pykinml_func.training.optimizers import adam
from pykinml_func.training.schedules import PlateauState
from pykinml_func.training.step import build_train_step
from pykinml_func.types import Batch, Networks, Params, TrainState

Rewrite = Callable[..., Path]


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
    params = Params(params.networks, torch.tensor([-1036.123456789012, -13.5, 1 / 3], dtype=torch.float64))
    save_model(tmp_path / "new" / "model.safetensors", config, params)
    loaded_config, loaded = load_model(str(tmp_path / "new" / "model.safetensors"))
    assert loaded_config == config
    assert len(loaded.networks.biases) == (2 if biases else 0)
    for then, now in zip(tree_leaves(params), tree_leaves(loaded), strict=True):
        assert then.dtype == now.dtype and torch.equal(then, now)


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


def test_a_checkpoint_holds_the_training_state_and_loads_as_a_model(
    tmp_path: Path, model_config: ModelConfig, state: TrainState, make_batch: Callable[..., Batch]
) -> None:
    state, _ = build_train_step(model_config, adam(), 0.3)(state, make_batch())
    path = tmp_path / "checkpoints" / "epoch_00007.safetensors"
    save_checkpoint(path, model_config, state, PlateauState(5e-4, 1.25, 3), epoch=7)
    config, params = load_model(path)
    assert config == model_config
    for then, now in zip(tree_leaves(state.params), tree_leaves(params), strict=True):
        assert torch.equal(then, now)
    training = json.loads(metadata_of(path)["training"])
    plateau = {"learning_rate": 5e-4, "best": 1.25, "epochs_without_improvement": 3}
    assert training == {"epoch": 7, "plateau": plateau}
    tensors = load_file(path)
    assert tensors["optimizer.step"].item() == 1
    for k, (first, second) in enumerate(
        zip(state.optimizer.first.weights, state.optimizer.second.weights, strict=True)
    ):
        assert torch.equal(tensors[f"optimizer.first.weights.{k}"], first)
        assert torch.equal(tensors[f"optimizer.second.weights.{k}"], second)
        assert first.abs().max() > 0


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
    with pytest.raises(ModelError, match=r"model format 2 \(pykinml-func 9\.9\).*upgrade"):
        load_model(rewrite(format_version="2", package_version="9.9"))


@pytest.mark.parametrize("lost", [{"model": None}, {"format_version": None}, {"format_version": "one"}])
def test_damaged_metadata_are_told(rewrite: Rewrite, lost: dict[str, str | None]) -> None:
    with pytest.raises(ModelError, match="damaged"):
        load_model(rewrite(**lost))


def test_an_unusable_configuration_is_told_without_jargon(rewrite: Rewrite) -> None:
    with pytest.raises(ModelError, match=r"configuration that cannot be used: neurons\.0: .*greater than 0") as caught:
        load_model(rewrite(model=json.dumps({"neurons": [-3, 1], "activations": ["tanh", "identity"]})))
    assert "http" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.1", "biases.2", "self_energies"])
def test_a_missing_tensor_is_named(rewrite: Rewrite, name: str) -> None:
    with pytest.raises(ModelError, match=f"lacks the tensor '{name}'"):
        load_model(rewrite({name: None}))


@pytest.mark.parametrize(
    ("name", "shape"), [("weights.1", (2, 3, 6)), ("biases.0", (2, 4)), ("biases.2", (1, 1)), ("self_energies", (3,))]
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
    other = Params(Networks(*(tuple(2 * leaf for leaf in layers) for layers in params.networks)), params.self_energies)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="disk full"):
            save_model(model_file, model_config, other)
    assert model_file.read_bytes() == before
