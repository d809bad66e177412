"""`pykinml convert` on the checkpoint that PyKinML's own example wrote."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_calls import Ended, Run, flat, run_command

from pykinml_func.potential.energy import energy
from pykinml_func.training.model_file import load_model

GIVEN = ["--elements", "C,H", "--radial-cutoff", "5.2", "--angular-cutoff", "3.8", "--beta", "0.95"]
GIVEN += ["--n-radial", "16", "--n-angular-radial", "8", "--n-angular", "8"]


class Terminal(io.StringIO):
    """What a user types, a line an answer."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def convert(shared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `pykinml convert` in an empty directory; `answers` are typed on a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object, output: str = "new.safetensors", old: Path | None = None, answers: str = "") -> Ended:
        checkpoint = old or shared / "parity" / "pykinml_checkpoint.pt"
        monkeypatch.setattr(sys, "stdin", Terminal(answers) if answers else io.StringIO())
        return run_command(capsys, "convert", checkpoint, output, *arguments)

    return run


def assert_right(shared: Path, model: str = "new.safetensors") -> None:
    """The energies are PyKinML's."""
    reference = np.load(shared / "parity" / "pykinml_checkpoint_reference.npz")
    config, params = load_model(model)
    species = torch.tensor([0] * 5 + [1] * 5)
    energies = [energy(config, params, species, torch.from_numpy(x)).item() for x in reference["positions"]]
    np.testing.assert_allclose(energies, reference["energies"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        GIVEN,
        ["--defaults"],
        ["--present-elements", "C,H", "--cuttoff_radius", "5.2,3.8", "--aev_params", "16,8,8", "--beta", "0.95"],
        ["--present_elements", "C,H", "--defaults"],
    ],
    ids=["ours", "defaults", "theirs", "some"],
)
def test_the_new_model_has_pykinml_s_energies(convert: Run, shared: Path, options: list[str]):
    ended = convert(*options)
    assert (ended.code, ended.err) == (0, "")
    for said in ("224 -> 48 -> 24 -> 12 -> 1", "no biases, float64", "C -1035.43984", "cutoffs 5.2 and 3.8 Å"):
        assert said in ended.out
    assert "sizes 16,8,8, beta 0.95" in ended.out
    assert_right(shared)


def test_what_is_missing_is_asked_for_on_a_terminal(convert: Run, shared: Path):
    ended = convert("--radial-cutoff", "5.2", answers="C,H\n\n\n\n\n\n")
    assert ended.code == 0, ended.err
    assert "order of the networks [C,H]" in ended.out and "angular cutoff [Å] [3.8]" in ended.out
    assert "radial cutoff [Å] [5.2]" not in ended.out
    assert_right(shared)
    convert("--overwrite", answers="H,C\n5.0\n3.5\n\n\n\n0.9\n")
    aev = load_model("new.safetensors")[0].aev
    assert (aev.elements, aev.radial_cutoff, aev.angular_cutoff, aev.beta) == (("H", "C"), 5.0, 3.5, 0.9)


def test_nothing_is_asked_where_defaults_are_taken_or_nobody_can_answer(convert: Run, tmp_path: Path):
    ended = convert("--elements", "C,H", "--aev-params", "16,8,8")
    assert ended.code == 2 and ended.out == ""
    assert "does not hold radial_cutoff, angular_cutoff, beta; give them, or --defaults" in flat(ended.err)
    assert "--radial-cutoff 5.2 --angular-cutoff 3.8 --beta 0.95" in flat(ended.err)
    assert not list(tmp_path.iterdir())
    assert "[5.2]" not in convert("--defaults", answers="C,H\n").out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--elements", "C,H,O"], "elements must be 2, one for each of the checkpoint's networks"),
        (["--n-radial", "12"], "must be of length 224, as the checkpoint's networks were made for, got 216"),
        (["--radial-cutoff", "far"], "radial_cutoff must be a number"),
        (["--radial-cutoff", "5", "--cuttoff-radius", "5,4"], "set the same thing"),
        (["--low-fidelity", "0"], "low_fidelity needs delta or multi_fidelity"),
        (["--epochs", "3"], "No such option"),
    ],
)
def test_options_that_do_not_fit_are_named(convert: Run, tmp_path: Path, options: list[str], said: str):
    ended = convert("--defaults", *options)
    assert ended.code == 2 and said in flat(ended.err)
    assert not list(tmp_path.iterdir())


def test_output_must_be_a_new_safetensors_in_a_folder_that_is_there(convert: Run, shared: Path):
    for output, said in (("new.pt", "must end in .safetensors"), ("no/new.safetensors", "make no first")):
        ended = convert("--defaults", output=output)
        assert ended.code == 2 and said in ended.err
    Path("new.safetensors").write_text("mine")
    ended = convert("--defaults")
    assert ended.code == 2 and "give --overwrite" in ended.err
    assert Path("new.safetensors").read_text() == "mine"
    assert convert("--defaults", "--overwrite").code == 0
    assert_right(shared)


def test_a_bad_checkpoint_is_named_before_anything_is_asked(convert: Run, tmp_path: Path):
    (tmp_path / "old.pt").write_text("nonsense")
    ended = convert(old=tmp_path / "old.pt", answers="C,H\n")
    assert ended.code == 2 and "old.pt must be a checkpoint of PyKinML" in ended.err
    assert ended.out == ""


def test_levels_are_numbered_as_asked(convert: Run):
    assert convert("--defaults", "--fidelity", "3").code == 0
    assert load_model("new.safetensors")[0].fidelities == (3,)
    ended = convert("--defaults", "--overwrite", "--delta", "--fidlevel-lf", "0")
    assert ended.code == 0 and "level 1 less level 0" in ended.out
    assert load_model("new.safetensors")[0].baseline == 0


def two_levels(path: Path) -> None:
    """As PyKinML would save networks of two levels for one element and AEVs of length 2."""
    shapes = {"0.linear.weight": (2, 2), "1.linear.weight": (1, 2)}
    high = shapes | {"0.linear.weight": (2, 3)}
    state = {f"NNs.0.{name}": torch.ones(shape).double() for name, shape in shapes.items()}
    state |= {f"NNs_hf.0.{name}": torch.ones(shape).double() for name, shape in high.items()}
    activations = [["tanh", "identity"]]
    params = {"activations": activations, "activations_hf": activations, "add_sae": True, "sae_energies": np.ones(1)}
    torch.save({"model_state_dict": state, "params": params}, path)


def test_two_levels_are_0_and_1_or_as_asked(convert: Run, tmp_path: Path):
    old = tmp_path / "old.pt"
    two_levels(old)
    options = ["--defaults", "--elements", "H", "--aev-params", "1,1,1", "--overwrite"]
    ended = convert(*options, old=old)
    assert ended.code == 0, ended.err
    config, params = load_model("new.safetensors")
    assert (config.fidelities, params.self_energies.tolist()) == ((0, 1), [[1.0], [1.0]])
    assert "level 0, H: 2 -> 2 -> 1" in ended.out and "level 1, H: 3 -> 2 -> 1" in ended.out
    assert convert(*options, "--fidelity", "5", "--low-fidelity", "2", old=old).code == 0
    assert load_model("new.safetensors")[0].fidelities == (2, 5)
    ended = convert(*options, "--fidelity", "5", "--low-fidelity", "2,3", old=old)
    assert ended.code == 2 and "must be 2, the checkpoint's levels, got 2, 3, 5" in ended.err
    ended = convert(*options, "--delta", "--low-fidelity", "0", old=old)
    assert ended.code == 2 and "delta and multi_fidelity contradict each other" in ended.err
