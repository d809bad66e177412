"""Model files: what is written comes back, ensembles too, and what cannot be used is told."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import metadata_of, of_format_1, rewritten
from runs import assert_same
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves, tree_map

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import member_of, stack_members
from pykinml_func.training.model_file import (
    join_ensembles,
    load_ensemble,
    load_model,
    save_ensemble,
    save_model,
    split_ensemble,
)
from pykinml_func.types import Calibration, Domain, Ensemble, Params


@pytest.fixture
def model_file(tmp_path: Path, model_config: ModelConfig, params: Params) -> Path:
    save_model(tmp_path / "model.safetensors", model_config, params)
    return tmp_path / "model.safetensors"


def several(config: ModelConfig, n_members: int, dtype: torch.dtype = torch.float64, first_seed: int = 0) -> Params:
    """Members of other networks and other self energies, the latter in float64."""
    seeds = range(first_seed, first_seed + n_members)
    return stack_members([init_params(config, torch.Generator().manual_seed(seed), dtype) for seed in seeds])


def drawn(kind: type, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(len(shapes))
    return kind(*(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes))


def full_ensemble(config: ModelConfig, n_members: int = 3, dtype: torch.dtype = torch.float64) -> Ensemble:
    """With a calibration and a domain."""
    n_levels, length = config.n_levels, config.aev.length
    calibration = drawn(Calibration, (n_levels,), (n_levels,), ())
    domain = drawn(Domain, (2, length), (2, length, 5), (2,), dtype=torch.float32)
    return Ensemble(config, several(config, n_members, dtype), calibration, domain)


def assert_same_ensemble(found: Ensemble, expected: Ensemble) -> None:
    assert found.model_config == expected.model_config and found.n_members == expected.n_members
    assert [part is None for part in found] == [part is None for part in expected]
    leaves = [[leaf for leaf in tree_leaves(each[1:]) if leaf is not None] for each in (found, expected)]
    assert [leaf.dtype for leaf in leaves[0]] == [leaf.dtype for leaf in leaves[1]]
    assert_same(*leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("levels", [(1,), (0, 3)])
def test_an_ensemble_comes_back_bit_for_bit(
    tmp_path: Path, model_config: ModelConfig, levels: tuple[int, ...], n_members: int, dtype: torch.dtype
) -> None:
    """With all that is known of where to trust it, with a part of that, and without."""
    config, path = model_config.model_copy(update={"fidelities": levels}), tmp_path / "model.safetensors"
    full = full_ensemble(config, n_members, dtype)
    nothing: dict[str, None] = {"calibration": None, "domain": None}
    for ensemble in (full, full._replace(calibration=None), full._replace(domain=None), full._replace(**nothing)):
        save_ensemble(path, ensemble)
        assert_same_ensemble(load_ensemble(path), ensemble)


def test_unknown_numbers_of_a_calibration_stay_unknown(tmp_path: Path, model_config: ModelConfig) -> None:
    unknown = Calibration(torch.tensor([1.5]), torch.tensor([torch.nan]), torch.tensor(torch.nan))
    ensemble = full_ensemble(model_config)._replace(calibration=unknown)
    save_ensemble(tmp_path / "model.safetensors", ensemble)
    found = load_ensemble(tmp_path / "model.safetensors").calibration
    assert found is not None
    assert found.energy_scale.item() == 1.5 and found.force_scale.isnan().all() and found.spread_limit.isnan()


def test_one_member_is_a_model_like_any_other(tmp_path: Path, model_config: ModelConfig) -> None:
    """Its file is that of `save_model`, as older versions have it too."""
    members = several(model_config, 1)
    save_ensemble(tmp_path / "one.safetensors", Ensemble(model_config, members))
    save_model(tmp_path / "model.safetensors", model_config, member_of(members, 0))
    one, model = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "model"))
    assert one.keys() == model.keys() and one["self_energies"].shape == (1, 2)
    assert_same(one, model)
    assert metadata_of(tmp_path / "one.safetensors") == metadata_of(tmp_path / "model.safetensors")


def test_a_model_is_loaded_from_a_file_with_a_domain(tmp_path: Path, model_config: ModelConfig) -> None:
    ensemble = full_ensemble(model_config, 1)
    save_ensemble(tmp_path / "model.safetensors", ensemble)
    assert_same(load_model(tmp_path / "model.safetensors")[1], member_of(ensemble.members, 0))


def test_several_members_are_no_one_model(tmp_path: Path, model_config: ModelConfig) -> None:
    save_ensemble(tmp_path / "three.safetensors", full_ensemble(model_config))
    with pytest.raises(
        ModelError, match=r"three\.safetensors must hold one model, got an ensemble of 3; use"
    ) as caught:
        load_model(tmp_path / "three.safetensors")
    assert "load_ensemble" in str(caught.value) and "`pykinml split`" in str(caught.value)


def test_members_are_joined_in_order_and_taken_apart_again(model_config: ModelConfig) -> None:
    three, two = full_ensemble(model_config), full_ensemble(model_config, 2)
    two = two._replace(members=several(model_config, 2, first_seed=9))
    five = join_ensembles([three, two], ["three", "two"])
    assert five.n_members == 5 and five.calibration is None
    assert_same(five.domain, three.domain)
    for place in range(5):
        expected = member_of(three.members, place) if place < 3 else member_of(two.members, place - 3)
        assert_same(member_of(five.members, place), expected)
    alone = split_ensemble(five)
    assert [each.n_members for each in alone] == [1] * 5
    assert all(each.calibration is None and each.domain is five.domain for each in alone)
    assert_same_ensemble(join_ensembles(alone, "abcde"), five)


def test_one_alone_stays_as_it_is(model_config: ModelConfig) -> None:
    ensemble = full_ensemble(model_config)
    assert join_ensembles([ensemble], ["three"]) is ensemble


@pytest.mark.parametrize("change", ["none", "other", "directions"])
def test_a_domain_that_not_all_have_is_dropped(model_config: ModelConfig, change: str) -> None:
    ensemble = full_ensemble(model_config)
    assert ensemble.domain is not None
    mean, whitener, farthest = ensemble.domain
    others = {
        "none": None,
        "other": Domain(mean, whitener, 2 * farthest),
        "directions": Domain(mean, whitener[..., :4], farthest),
    }
    other = Ensemble(model_config, several(model_config, 3, first_seed=7), domain=others[change])
    for pair in ([ensemble, other], [other, ensemble]):
        assert join_ensembles(pair, ["a", "b"]).domain is None


def test_a_member_that_is_there_already_is_told(model_config: ModelConfig) -> None:
    """A copy, or one that was taken out of another of the ensembles: the spread would be too small."""
    ensemble, other = full_ensemble(model_config), Ensemble(model_config, several(model_config, 1, first_seed=7))
    member = split_ensemble(ensemble)[1]
    for found in ([ensemble, other, member], [member, other, member]):
        with pytest.raises(ModelError, match=r"must differ, and one of c is one of a; leave it out"):
            join_ensembles(found, ["a", "b", "c"])


def test_settings_that_differ_are_named(model_config: ModelConfig) -> None:
    aev = AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2, zeta=4.0)
    other = model_config.model_copy(update={"biases": False, "aev": aev})
    first, single = (
        Ensemble(model_config, several(model_config, 2, dtype)) for dtype in (torch.float64, torch.float32)
    )
    with pytest.raises(
        ModelError, match=r"share their settings, and b\.x differs from the first in biases, zeta; leave"
    ):
        join_ensembles([first, first, Ensemble(other, several(other, 1))], ["a.x", "c.x", "b.x"])
    with pytest.raises(ModelError, match=r"b differs from the first in precision; leave it out"):
        join_ensembles([first, single], ["a", "b"])


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


def test_a_model_of_format_1_still_loads(model_file: Path, model_config: ModelConfig, params: Params) -> None:
    config, loaded = load_model(of_format_1(model_file))
    assert "weights.0" in load_file(model_file) and load_file(model_file)["self_energies"].shape == (2,)
    assert config == model_config
    assert_same(loaded, params)


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_model_of_formats_2_and_3_still_loads(model_file: Path, params: Params, version: str) -> None:
    """They know of no members, and else are like this one."""
    path = rewritten(model_file, format_version=version)
    assert_same(load_model(path)[1], params)
    ensemble = load_ensemble(path)
    assert (ensemble.n_members, ensemble.calibration, ensemble.domain) == (1, None, None)


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


def test_a_newer_format_asks_for_an_upgrade(model_file: Path) -> None:
    with pytest.raises(ModelError, match=r"model format 5 \(pykinml-func 9\.9\).*upgrade"):
        load_model(rewritten(model_file, format_version="5", package_version="9.9"))


@pytest.mark.parametrize(
    "lost", [{"model": None}, {"format_version": None}, {"format_version": "one"}, {"members": "-1"}]
)
def test_damaged_metadata_are_told(model_file: Path, lost: dict[str, str | None]) -> None:
    with pytest.raises(ModelError, match="damaged"):
        load_model(rewritten(model_file, **lost))


def test_an_unusable_configuration_is_told_without_jargon(model_file: Path) -> None:
    with pytest.raises(ModelError, match=r"configuration that cannot be used: neurons\.0: .*greater than 0") as caught:
        load_model(rewritten(model_file, model=json.dumps({"neurons": [-3, 1], "activations": ["tanh", "identity"]})))
    assert "http" not in str(caught.value)


@pytest.mark.parametrize("name", ["networks.0.weights.1", "networks.0.biases.2", "self_energies"])
def test_a_missing_tensor_is_named(model_file: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"lacks the tensor '{name}'"):
        load_model(rewritten(model_file, {name: None}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("networks.0.weights.1", (2, 3, 6)),
        ("networks.0.biases.0", (2, 4)),
        ("networks.0.biases.2", (1, 1)),
        ("self_energies", (3, 1)),
    ],
)
def test_a_tensor_of_another_shape_is_named(model_file: Path, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=f"{name} of shape .* got \\({shape[0]},"):
        load_model(rewritten(model_file, {name: torch.zeros(shape, dtype=torch.float64)}))


@pytest.mark.parametrize("name", ["networks.0.weights.1", "self_energies", "calibration.force_scale", "domain.mean"])
def test_an_ensemble_that_lacks_a_tensor_is_told(tmp_path: Path, model_config: ModelConfig, name: str) -> None:
    save_ensemble(tmp_path / "three.safetensors", full_ensemble(model_config))
    path = rewritten(tmp_path / "three.safetensors", {name: None})
    with pytest.raises(ModelError, match=rf"three\.safetensors lacks the tensor '{name}'"):
        load_ensemble(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("calibration.energy_scale", (3,)),
        ("calibration.force_scale", ()),
        ("calibration.spread_limit", (1,)),
        ("domain.mean", (2, 3)),
        ("domain.whitener", (5,)),
        ("domain.farthest", (3,)),
    ],
)
def test_a_calibration_or_domain_of_another_shape_is_named(
    tmp_path: Path, model_config: ModelConfig, name: str, shape: tuple[int, ...]
) -> None:
    save_ensemble(tmp_path / "three.safetensors", full_ensemble(model_config))
    path = rewritten(tmp_path / "three.safetensors", {name: torch.zeros(shape)})
    with pytest.raises(ModelError, match=rf"must hold {name} of shape \(.*\), got {re.escape(str(shape))}"):
        load_ensemble(path)


@pytest.mark.parametrize(
    ("name", "dtype", "told"),
    [
        ("networks.0.weights.0", torch.float16, r"networks\.0\.weights\.0 in float32 or float64, got torch\.float16"),
        ("networks.0.biases.1", torch.int64, r"networks\.0\.biases\.1 in float32 or float64, got torch\.int64"),
        ("networks.0.weights.1", torch.float32, r"in one precision .*, got torch\.float32, torch\.float64 and"),
        ("self_energies", torch.float32, r"self energies in float64, got torch\.float64 and torch\.float32"),
    ],
)
def test_numbers_that_no_model_has_are_told(model_file: Path, name: str, dtype: torch.dtype, told: str) -> None:
    """What reads them takes whatever is not float32 for float64."""
    path = rewritten(model_file, {name: load_file(model_file)[name].to(dtype)})
    with pytest.raises(ModelError, match=told):
        load_ensemble(path)


@pytest.mark.parametrize(("name", "number"), [("networks.0.weights.1", torch.nan), ("self_energies", torch.inf)])
def test_numbers_that_are_not_finite_are_told(model_file: Path, name: str, number: float) -> None:
    tensor = load_file(model_file)[name]
    tensor[0, 0] = number
    with pytest.raises(ModelError, match=r"holds numbers that are not finite; it is damaged"):
        load_ensemble(rewritten(model_file, {name: tensor}))


@pytest.mark.parametrize("members", ["2", "4", "999999999999", None])
def test_another_number_of_members_than_told_is_noticed(
    tmp_path: Path, model_config: ModelConfig, members: str | None
) -> None:
    save_ensemble(tmp_path / "three.safetensors", full_ensemble(model_config))
    path = rewritten(tmp_path / "three.safetensors", members=members)
    with pytest.raises(ModelError, match=r"must hold networks\.0\.weights\.0 of shape .*, got \(3,"):
        load_ensemble(path)


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
