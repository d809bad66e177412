"""Against what PyKinML predicts with its own checkpoints, and against files that would do harm."""

from __future__ import annotations

import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.errors import ModelError
from pykinml_func.potential.energy import atomic_energies, sum_by_structure
from pykinml_func.potential.forces import energy_and_forces
from pykinml_func.training.model_file import load_model, save_model
from pykinml_func.training.pykinml_checkpoint import convert_pykinml, read_pykinml_checkpoint
from pykinml_func.types import Params

AEV = AEVConfig(elements=("C", "H"), n_radial=3, n_angular_radial=2, n_angular=2)
NAMES = ["gaussian", "silu", "tanh", "identity"]
NEURONS = [6, 5, 4, 1]
SELF_ENERGIES = np.array([-1.3, 0.8])
"""eV; small, so that no activation saturates and each part of a sum shows in the result"""


@pytest.fixture(scope="module")
def nnpes() -> Any:
    """PyKinML's networks. torch_scatter, which needs a compiler, is stood in for by index_add."""

    def segment_coo(values: Tensor, index: Tensor, dim_size: int, reduce: str) -> Tensor:
        assert reduce == "sum"
        return values.new_zeros(dim_size, values.shape[1]).index_add(0, index, values)

    pytest.importorskip("pykinml")
    stand_in: Any = types.ModuleType("torch_scatter")
    stand_in.segment_coo = segment_coo
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_scatter", stand_in)
        import pykinml.nnpes

        yield pykinml.nnpes


def functions(nnpes: Any, tanh: Any) -> list[Any]:
    """The activations as PyKinML pickles those of the high level."""
    return [nnpes.gaussian, nnpes.silu, tanh, nnpes.identity]


Build = Callable[..., tuple[nn.Module, dict[str, Any]]]


@pytest.fixture
def build(nnpes: Any) -> Build:
    """A network of PyKinML with random weights, and the params that its checkpoint holds."""

    def make(levels: int = 1, tanh: Any = None, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        acts = functions(nnpes, tanh or nn.Tanh())
        params = {"n_input": [AEV.length] * 2, "neurons": [NEURONS] * 2, "activations": [acts] * 2}
        params |= {"sae_energies": SELF_ENERGIES, "add_sae": True, "biases": False}
        if levels == 2:
            params |= {"neurons_hf": [NEURONS] * 2, "activations_hf": [acts] * 2}
        params |= options
        torch.manual_seed(7)
        net = (nnpes.CompositeNetworks_MF if levels == 2 else nnpes.CompositeNetworks)(**params).double()
        net.log_sigma = nn.Parameter(torch.tensor([0.3]))
        return net, params | {"activations": [NAMES] * 2}

    return make


def save(path: Path, net: nn.Module, params: dict[str, Any], **changed: Any) -> Path:
    """As PyKinML's loop saves, whole optimizer and scheduler and all."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    sum(parameter.square().sum() for parameter in net.parameters()).backward()
    optimizer.step()
    content = {
        "epoch": 9,
        "optimizer": optimizer,
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=25),
        "model_state_dict": net.state_dict(),
        "sae_energies": params["sae_energies"],
        "params": params,
    }
    torch.save(content | changed, path)
    return path


def assert_same_energies(net: Any, levels: int, config: ModelConfig, params: Params) -> None:
    """Both on random AEVs of three structures with two carbons and five hydrogens between them."""
    generator = torch.Generator().manual_seed(3)
    aevs = torch.rand(2, 5, AEV.length, generator=generator, dtype=torch.float64)
    index = torch.tensor([[0, 2, 3, 3, 3], [0, 1, 1, 2, 2]])  # 3: padding
    per_species = [(aevs[s][index[s] < 3], index[s][index[s] < 3]) for s in range(2)]
    with torch.no_grad():
        theirs = net([a for a, _ in per_species], [i for _, i in per_species], 3, train=False)
    theirs = torch.cat(theirs if levels == 2 else [theirs], dim=1)
    counts = torch.stack([torch.bincount(i, minlength=3) for _, i in per_species], dim=1).double()
    ours = sum_by_structure(atomic_energies(config, params.networks, aevs), index, 3)
    torch.testing.assert_close(ours + counts @ params.self_energies.T, theirs, rtol=1e-10, atol=1e-10)


def test_energies_and_forces_are_those_of_pykinml(shared: Path):
    reference = np.load(shared / "parity" / "pykinml_checkpoint_reference.npz")
    old = read_pykinml_checkpoint(shared / "parity" / "pykinml_checkpoint.pt")
    config, params = convert_pykinml(old, AEVConfig(elements=("C", "H")), (1,))
    species = torch.tensor([0] * 5 + [1] * 5)
    results = [energy_and_forces(config, params, species, torch.from_numpy(x)) for x in reference["positions"]]
    energies = np.array([energy.item() for energy, _ in results])
    np.testing.assert_allclose(energies, reference["energies"], rtol=0, atol=1e-9)
    forces = np.stack([force.numpy() for _, force in results[:3]])
    np.testing.assert_allclose(forces, reference["forces_by_central_difference"], rtol=0, atol=1e-5)
    assert config.neurons == (48, 24, 12, 1) and not config.biases and config.fidelities == (1,)


@pytest.mark.parametrize("biases", [True, False])
def test_single_fidelity_is_that_of_pykinml(build: Build, tmp_path: Path, biases: bool):
    net, params = build(biases=biases)
    config, converted = convert_pykinml(read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params)), AEV, (4,))
    assert_same_energies(net, 1, config, converted)
    assert (config.biases, config.fidelities, config.activations) == (biases, (4,), tuple(NAMES))


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("dscr", [True, False])
@pytest.mark.parametrize(("pass_eng", "pass_aev"), [(True, True), (True, False), (False, True), (None, None)])
def test_both_levels_are_those_of_pykinml(
    build: Build, tmp_path: Path, pass_eng: bool | None, pass_aev: bool | None, dscr: bool, biases: bool
):
    passed = {} if pass_eng is None else {"pass_eng": pass_eng, "pass_aev": pass_aev}
    net, params = build(2, dscr=dscr, biases=biases, **passed)
    config, converted = convert_pykinml(read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params)), AEV, (0, 1))
    assert_same_energies(net, 2, config, converted)
    assert config.biases == (biases or pass_eng is not False)


def test_self_energies_of_real_size_are_folded_exactly(nnpes: Any, build: Build, tmp_path: Path):
    acts = [nnpes.my_relu, nnpes.silu, nnpes.my_relu, nnpes.identity]  # the others are flat at -1035 eV
    net, params = build(2, activations=[acts] * 2, activations_hf=[acts] * 2, sae_energies=np.array([-1035.4, -16.9]))
    params["activations"] = [["relu", "silu", "relu", "identity"]] * 2
    config, converted = convert_pykinml(read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params)), AEV, (0, 1))
    assert_same_energies(net, 2, config, converted)


@pytest.mark.parametrize("levels", [1, 2])
def test_without_add_sae_there_are_no_self_energies(build: Build, tmp_path: Path, levels: int):
    net, params = build(levels, add_sae=False)
    old = read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params))
    config, converted = convert_pykinml(old, AEV, (0, 1)[:levels])
    assert_same_energies(net, levels, config, converted)
    assert not converted.self_energies.any() and not config.biases


def test_a_converted_model_comes_back_from_its_file(build: Build, tmp_path: Path):
    net, params = build(2)
    old = read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params))
    save_model(tmp_path / "new.safetensors", *convert_pykinml(old, AEV, (0, 1)))
    assert_same_energies(net, 2, *load_model(tmp_path / "new.safetensors"))


def test_precision_is_kept_and_self_energies_are_float64(build: Build, tmp_path: Path):
    net, params = build(2)
    old = read_pykinml_checkpoint(save(tmp_path / "old.pt", net.float(), params))
    _, converted = convert_pykinml(old, AEV, (0, 1))
    tensors = [tensor for network in converted.networks for tensor in (*network.weights, *network.biases)]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert converted.self_energies.dtype == torch.float64


WRITTEN = {
    "array": SELF_ENERGIES,
    "array of the other byte order": SELF_ENERGIES.astype(">f8"),
    "array in float32": np.array([-1.5, 0.25], np.float32),
    "tensor": torch.tensor([-1.5, 0.25]),
    "list": [-1.5, 0.25],
    "numpy's numbers": list(SELF_ENERGIES),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_self_energies_come_out_right_however_written(build: Build, tmp_path: Path, kind: str):
    net, params = build()
    path = save(tmp_path / "old.pt", net, params, sae_energies=WRITTEN[kind])
    assert read_pykinml_checkpoint(path).self_energies.tolist() == [float(value) for value in WRITTEN[kind]]


def test_self_energies_are_those_of_the_training(build: Build, tmp_path: Path):
    """Continued on other data, PyKinML keeps the first run's in params and trains with the others."""
    net, params = build()
    path = save(tmp_path / "old.pt", net, params, sae_energies=np.array([-2.0, 3.0]))
    assert read_pykinml_checkpoint(path).self_energies.tolist() == [-2.0, 3.0]


@pytest.mark.parametrize("tanh", [nn.Tanh(), torch.tanh], ids=["module", "function"])
def test_pickled_activations_are_known_by_name(build: Build, tmp_path: Path, tanh: Any):
    net, params = build(2, tanh=tanh)
    assert read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params)).activations == tuple(NAMES)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_any_optimizer_and_schedule_may_be_pickled(build: Build, tmp_path: Path, optimizer: str):
    net, params = build()
    pickled = getattr(torch.optim, optimizer)(net.parameters(), lr=0.1)
    schedules = torch.optim.lr_scheduler.StepLR(pickled, 5), torch.optim.lr_scheduler.ExponentialLR(pickled, 0.5)
    for schedule in schedules:
        path = save(tmp_path / "old.pt", net, params, optimizer=pickled, lr_scheduler=schedule)
        assert read_pykinml_checkpoint(path).n_species == 2


def test_names_of_distributed_training_are_the_same_model(build: Build, tmp_path: Path):
    net, params = build()
    state = OrderedDict((f"module.{name}", tensor) for name, tensor in net.state_dict().items())
    old = read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params, model_state_dict=state))
    assert_same_energies(net, 1, *convert_pykinml(old, AEV, (1,)))


class Harmful:
    """Unpickled the usual way, it calls what it was made with."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(marker: Path) -> dict[str, Harmful]:
    return {
        "posix.system": Harmful(os.system, f"touch {marker}"),
        "builtins.eval": Harmful(eval, f"open({str(marker)!r}, 'w').close()"),
        "builtins.exec": Harmful(exec, f"open({str(marker)!r}, 'w').close()"),
        "pathlib.": Harmful(Path.touch, marker),
        "torch.hub.": Harmful(torch.hub._remove_if_exists, str(marker.parent / "kept")),
    }


@pytest.mark.parametrize("name", attacks(Path()))
@pytest.mark.parametrize("place", ["optimizer", "sae_energies", "model_state_dict"])
def test_nothing_of_a_harmful_file_runs(build: Build, tmp_path: Path, name: str, place: str):
    net, params = build()
    (tmp_path / "kept").touch()
    attack = attacks(tmp_path / "ran")[name]
    path = save(tmp_path / "old.pt", net, params, **{place: {"NNs.0.0.linear.weight": attack}})
    with pytest.raises(ModelError, match=f"{name}.*nothing of it was run"):
        read_pykinml_checkpoint(path)
    assert (tmp_path / "kept").exists() and not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists() or not (tmp_path / "kept").exists(), "the attack must work where it is let"


def rewritten(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a file of torch.save with another pickle in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    return target


@pytest.mark.parametrize("name", [b"torch.optim.nowhere\nNothing", b"pykinml.nnpes\nos.system"])
def test_names_that_are_let_through_are_not_looked_up(build: Build, tmp_path: Path, name: bytes):
    net, params = build()
    old = save(tmp_path / "old.pt", net, params)
    path = rewritten(old, tmp_path / "new.pt", lambda data: data.replace(b"torch.optim.adam\nAdam", name))
    assert name in zipfile.ZipFile(path).read("old/data.pkl")
    assert_same_energies(net, 1, *convert_pykinml(read_pykinml_checkpoint(path), AEV, (1,)))


def no_pickle(data: bytes) -> bytes:
    return data[: len(data) // 2]


def protocol_4(_: bytes) -> bytes:
    return pickle.dumps({"model_state_dict": Harmful(os.system, "true")}, protocol=4)


@pytest.mark.parametrize("change", [no_pickle, protocol_4])
def test_damaged_pickles_are_named(build: Build, tmp_path: Path, change: Callable[[bytes], bytes]):
    old = save(tmp_path / "old.pt", *build())
    with pytest.raises(ModelError, match="got another or a damaged file"):
        read_pykinml_checkpoint(rewritten(old, tmp_path / "new.pt", change))


def test_other_files_are_named(build: Build, tmp_path: Path):
    whole = save(tmp_path / "old.pt", *build()).read_bytes()
    save_model(
        tmp_path / "model.safetensors", *convert_pykinml(read_pykinml_checkpoint(tmp_path / "old.pt"), AEV, (1,))
    )
    for number, content in enumerate(
        (b"", b"nonsense", whole[: len(whole) // 2], whole[:-30], (tmp_path / "model.safetensors").read_bytes())
    ):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=f"{number}.pt must be a checkpoint of PyKinML"):
            read_pykinml_checkpoint(path)
    with pytest.raises(ModelError, match=r"no checkpoint .*none.pt"):
        read_pykinml_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [[1, 2], {"model_state_dict": {}}, {"weights": torch.ones(2)}])
def test_other_content_is_named(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(ModelError, match="must hold model_state_dict and params"):
        read_pykinml_checkpoint(tmp_path / "old.pt")


LAYER = "NNs.1.0.linear.weight"

SAME = "the same layers for every element"
STATES: dict[str, tuple[Callable[[Tensor], dict[str, Tensor]], str]] = {
    "other layers": (lambda weight: {LAYER: weight[:-1]}, SAME),
    "other depth": (lambda weight: {"NNs.1.4.linear.weight": weight}, SAME),
    "bias of one": (lambda weight: {"NNs.1.0.linear.bias": weight[:, 0]}, SAME),
    "short biases": (
        lambda weight: {f"NNs.{s}.{k}.linear.bias": weight[:1, 0] for s in (0, 1) for k in range(4)},
        SAME,
    ),
    "flat": (lambda weight: {LAYER: weight.flatten(), "NNs.0.0.linear.weight": weight.flatten()}, SAME),
    "precision": (lambda weight: {LAYER: weight.half()}, "all float64 or all float32"),
    "other parts": (lambda weight: {"encoder.weight": weight}, "got encoder.weight"),
}


@pytest.mark.parametrize("case", STATES)
def test_networks_that_do_not_fit_are_named(build: Build, tmp_path: Path, case: str):
    net, params = build()
    change, said = STATES[case]
    state = dict(net.state_dict())
    with pytest.raises(ModelError, match=said):
        read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params, model_state_dict=state | change(state[LAYER])))
    with pytest.raises(ModelError, match="must hold networks"):
        read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params, model_state_dict={"log_sigma": torch.ones(1)}))


PARAMS = {
    "unknown": ({"activations": [["x2", *NAMES[1:]]] * 2}, "activations must be of gaussian, tanh"),
    "of one element": ({"activations": [NAMES, NAMES[::-1]]}, "the same for every element"),
    "of the high level": ({"activations": [NAMES[::-1]] * 2}, "the same at both levels"),
    "none": ({"activations": None}, "must hold activations"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_activations_that_do_not_fit_are_named(build: Build, tmp_path: Path, case: str):
    net, params = build(2)
    changed, said = PARAMS[case]
    with pytest.raises(ModelError, match=said):
        read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params | changed))


@pytest.mark.parametrize("written", [np.zeros(3), None, "text", np.array([None, None]), np.array(["a", "b"])])
def test_self_energies_that_do_not_fit_are_named(build: Build, tmp_path: Path, written: Any):
    net, params = build()
    path = save(tmp_path / "old.pt", net, params, sae_energies=written)
    with pytest.raises(ModelError, match=r"sae_energies must be one a network|numbers must be"):
        read_pykinml_checkpoint(path)


def test_levels_of_other_layers_are_named(build: Build, tmp_path: Path):
    net, params = build(2, neurons_hf=[[3, 5, 4, 1]] * 2)
    old = read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params))
    with pytest.raises(ModelError, match=r"layers of level 1 must be 19 -> 6, .*got 19 -> 3"):
        convert_pykinml(old, AEV, (0, 1))


def test_layers_and_activations_of_other_numbers_are_named(build: Build, tmp_path: Path):
    net, params = build()
    old = read_pykinml_checkpoint(save(tmp_path / "old.pt", net, params | {"activations": [NAMES[1:]] * 2}))
    with pytest.raises(ModelError, match="got 3 for 4 layers"):
        convert_pykinml(old, AEV, (1,))


def test_aevs_that_do_not_fit_are_named(build: Build, tmp_path: Path):
    old = read_pykinml_checkpoint(save(tmp_path / "old.pt", *build()))
    with pytest.raises(ModelError, match=r"elements must be 2, one for each .*, got C, H, O"):
        convert_pykinml(old, AEVConfig(elements=("C", "H", "O"), n_radial=3, n_angular_radial=2, n_angular=2), (1,))
    with pytest.raises(ModelError, match=r"must be of length 18, .*got 20 .* 4,2,2; sizes that fit: 3,2,2 or") as error:
        convert_pykinml(old, AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2), (1,))
    suggested = str(error.value).rpartition(": ")[2].split(" or ")
    for n_radial, n_angular_radial, n_angular in (map(int, sizes.split(",")) for sizes in suggested):
        grid = AEVConfig(elements=("C", "H"), n_radial=n_radial, n_angular_radial=n_angular_radial, n_angular=n_angular)
        assert grid.length == 18
    with pytest.raises(ModelError, match="fidelities must be 1, the checkpoint's levels, got 0, 1"):
        convert_pykinml(old, AEV, (0, 1))
