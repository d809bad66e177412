"""`pykinml combine` and `pykinml split`: models in, an ensemble out, and back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from cli_calls import Run, flat, run_command
from safetensors import safe_open

from pykinml_func.config import AEVConfig, ModelConfig
from pykinml_func.data.formats.database import write_database
from pykinml_func.inference.evaluation import read_labels
from pykinml_func.inference.recalibration import fit_calibration
from pykinml_func.potential.energy import init_params
from pykinml_func.potential.ensemble import stack_members
from pykinml_func.training.model_file import load_ensemble, save_ensemble, save_model
from pykinml_func.types import Calibration, Domain, Ensemble, Structures

AEV = AEVConfig(elements=("C", "H"), n_radial=4, n_angular_radial=2, n_angular=2)
MODEL = ModelConfig(aev=AEV, neurons=(5, 1), activations=("tanh", "identity"))
OTHER = MODEL.model_copy(update={"biases": False, "aev": AEV.model_copy(update={"radial_cutoff": 4.0})})


def ensemble_of(*seeds: int, dtype: torch.dtype = torch.float64) -> Ensemble:
    """With a calibration, and a domain that is the same of all."""
    members = [init_params(MODEL, torch.Generator().manual_seed(seed), dtype) for seed in seeds]
    calibration = Calibration(torch.tensor([1.5]), torch.tensor([0.5]), torch.tensor(0.1))
    domain = Domain(torch.ones(2, AEV.length), torch.ones(2, AEV.length, 3), torch.ones(2))
    return Ensemble(MODEL, stack_members(members), calibration, domain)


def contents(path: Path | str) -> tuple[dict[str, str], dict[str, tuple[torch.dtype, list[float]]]]:
    """Metadata and tensors of a file, whose metadata lie in it in any order."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return dict(file.metadata()), {name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """0, 1 and 2.safetensors: models with the same domain; plain: without; twelve: an ensemble."""
    for seed in range(3):
        save_ensemble(tmp_path / f"{seed}.safetensors", ensemble_of(seed)._replace(calibration=None))
    save_ensemble(tmp_path / "twelve.safetensors", ensemble_of(*range(12)))
    save_ensemble(tmp_path / "single.safetensors", ensemble_of(0, dtype=torch.float32))
    save_model(tmp_path / "plain.safetensors", MODEL, init_params(MODEL, torch.Generator().manual_seed(12)))
    save_model(tmp_path / "other.safetensors", OTHER, init_params(OTHER, torch.Generator()))
    return tmp_path


@pytest.fixture
def pykinml(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run_command, capsys)


def test_combined_models_are_the_members_in_order(pykinml: Run) -> None:
    ended = pykinml("combine", "e.safetensors", "1.safetensors", "0.safetensors", "2.safetensors")
    assert (ended.code, ended.err) == (0, "")
    assert "wrote e.safetensors: 3 members" in ended.out and "that of the models" in ended.out
    assert "none: spreads are standard deviations as they are; --calibrate" in ended.out
    save_ensemble("expected.safetensors", ensemble_of(1, 0, 2)._replace(calibration=None))
    assert contents("e.safetensors") == contents("expected.safetensors")


def test_combine_takes_ensembles_too_and_drops_their_calibration(pykinml: Run) -> None:
    assert pykinml("combine", "e.safetensors", "twelve.safetensors", "plain.safetensors").code == 0
    found = load_ensemble("e.safetensors")
    assert (found.n_members, found.calibration) == (13, None)


def test_a_domain_that_not_all_have_is_told(pykinml: Run) -> None:
    ended = pykinml("combine", "e.safetensors", "0.safetensors", "plain.safetensors")
    assert ended.code == 0 and "none: the models have not all the same one" in ended.out
    assert load_ensemble("e.safetensors").domain is None


@pytest.mark.parametrize("name", ["0.safetensors 1.safetensors 2.safetensors", "twelve.safetensors plain.safetensors"])
def test_combine_split_and_combine_gives_the_same_file(pykinml: Run, name: str) -> None:
    """In the order in which a shell names the members."""
    assert pykinml("combine", "e.safetensors", *name.split()).code == 0
    assert pykinml("split", "e.safetensors", "members").code == 0
    members = sorted(Path("members").iterdir())
    assert len(members) == load_ensemble("e.safetensors").n_members
    assert pykinml("combine", "again.safetensors", *members).code == 0
    assert contents("again.safetensors") == contents("e.safetensors")


def test_split_members_are_models_with_the_domain(pykinml: Run) -> None:
    ended = pykinml("split", "twelve.safetensors", "new/members")
    assert (ended.code, ended.err) == (0, "")
    assert "wrote 12 models, new/members/member_00.safetensors to member_11.safetensors" in ended.out
    for seed in range(12):
        save_ensemble("expected.safetensors", ensemble_of(seed)._replace(calibration=None))
        assert contents(f"new/members/member_{seed:02}.safetensors") == contents("expected.safetensors")


def test_a_calibration_is_fitted_on_request(pykinml: Run, make_structures: Callable[..., Structures]) -> None:
    """To several files, without a change of anything else."""
    for formula in ("C2H2", "CH4"):
        write_database(Path(f"{formula}.db"), make_structures([formula] * 4, seed=3), {1: "made up"})
    models = [f"{seed}.safetensors" for seed in range(3)]
    ended = pykinml("combine", "e.safetensors", *models, "--calibrate", "C2H2.db", "--calibrate", "CH4.d*")
    assert (ended.code, ended.err) == (0, "")
    found, calibration = load_ensemble("e.safetensors"), load_ensemble("e.safetensors").calibration
    labels = read_labels(found.model_config, [Path("C2H2.db"), Path("CH4.db")])
    assert calibration is not None and labels.n_structures == 8
    for mine, expected in zip(calibration, fit_calibration(ensemble_of(0, 1, 2), labels), strict=True):
        assert torch.equal(mine, expected)
    energy, force = float(calibration.energy_scale), float(calibration.force_scale)
    assert f"level 1: spread of energies times {energy:.3g}, of forces times {force:.3g}" in ended.out
    assert pykinml("combine", "plain_e.safetensors", *models).code == 0
    plain = {name: tensor for name, tensor in contents("e.safetensors")[1].items() if "calibration" not in name}
    assert plain == contents("plain_e.safetensors")[1]


def test_an_ensemble_alone_keeps_its_calibration_or_gets_another(
    pykinml: Run, make_structures: Callable[..., Structures]
) -> None:
    assert pykinml("combine", "e.safetensors", "twelve.safetensors").code == 0
    assert contents("e.safetensors") == contents("twelve.safetensors")
    write_database(Path("C2H2.db"), make_structures(["C2H2"] * 4, seed=3), {1: "made up"})
    ended = pykinml("combine", "e.safetensors", "twelve.safetensors", "--calibrate", "C2H2.db", "--overwrite")
    assert ended.code == 0
    found = load_ensemble("e.safetensors").calibration
    assert found is not None and float(found.energy_scale) != 1.5


def test_nothing_is_overwritten_unless_asked_for(pykinml: Run) -> None:
    before = Path("2.safetensors").read_bytes()
    combine = ["combine", "2.safetensors", "0.safetensors", "1.safetensors"]
    ended = pykinml(*combine)
    assert ended.code == 2 and "2.safetensors is there; give --overwrite to replace it" in flat(ended.err)
    assert Path("2.safetensors").read_bytes() == before
    assert pykinml(*combine, "--overwrite").code == 0
    assert pykinml("split", "2.safetensors", "members").code == 0
    first = Path("members/member_0.safetensors")
    first.write_bytes(before)
    ended = pykinml("split", "2.safetensors", "members")
    assert ended.code == 2 and f"{first} is there; give --overwrite to replace it" in flat(ended.err)
    assert first.read_bytes() == before
    assert pykinml("split", "2.safetensors", "members", "--overwrite").code == 0
    assert contents(first) == contents("0.safetensors")


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_members_of_two_ensembles_are_not_mixed(pykinml: Run, options: list[str]) -> None:
    assert pykinml("split", "twelve.safetensors", "members").code == 0
    assert pykinml("combine", "e.safetensors", "0.safetensors", "1.safetensors").code == 0
    ended = pykinml("split", "e.safetensors", "members", *options)
    assert ended.code == 2 and "members of other ensembles, got members/member_00.safetensors" in flat(ended.err)
    assert len(list(Path("members").iterdir())) == 12


WRONG = {
    "no model": ("combine e.safetensors 0.safetensors none.safetensors", "no model file none.safetensors"),
    "no file of a model": ("combine e.safetensors 0.safetensors text", "text must be a model of `pykinml train`"),
    "other settings": (
        "combine e.safetensors 0.safetensors other.safetensors",
        "other.safetensors differs from the first in biases, radial_cutoff; leave it out",
    ),
    "other precision": (
        "combine e.safetensors 0.safetensors single.safetensors",
        "single.safetensors differs from the first in precision; leave it out",
    ),
    "one alone": ("combine e.safetensors 0.safetensors", "must have at least two members, got 0.safetensors alone"),
    "twice": (
        "combine e.safetensors 0.safetensors ./0.safetensors",
        "must differ, and one of 0.safetensors is one of 0.safetensors; leave it out",
    ),
    "another suffix": ("combine e.pt 0.safetensors 1.safetensors", "must end in .safetensors, got e.pt"),
    "no folder": ("combine no/e.safetensors 0.safetensors 1.safetensors", "make no first"),
    "no labels": ("combine e.safetensors 0.safetensors 1.safetensors --calibrate no.db", "no file matches 'no.db'"),
    "labels as output": (
        "combine 2.safetensors 0.safetensors 1.safetensors --overwrite --calibrate 2.safetensors",
        "output must differ from what is read, got 2.safetensors",
    ),
    "its input": (
        "combine 0.safetensors 0.safetensors 1.safetensors --overwrite",
        "output must differ from what is read, got 0.safetensors",
    ),
    "one model": ("split 0.safetensors members", "0.safetensors must hold several members to be split, got one"),
    "no ensemble": ("split none.safetensors members", "no model file none.safetensors"),
    "a file as directory": ("split twelve.safetensors text", "text"),
    "split over itself": ("split in/member_00.safetensors in --overwrite", "output must differ from what is read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_says_what_is_wrong(pykinml: Run, folder: Path, case: str) -> None:
    Path("text").write_text("no model")
    Path("in").mkdir()
    shutil.copy("twelve.safetensors", "in/member_00.safetensors")
    arguments, said = WRONG[case]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ended = pykinml(*arguments.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in flat(ended.err) and "Traceback" not in ended.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
