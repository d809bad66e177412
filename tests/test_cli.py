from __future__ import annotations

import json
import pickle
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_calls import SMALL, Ended, Run, call, flat, run_command

import pykinml_func
from pykinml_func.config import RunConfig
from pykinml_func.config.build import build_config
from pykinml_func.config.names import ALIASES, SETTINGS, SWITCHES
from pykinml_func.config.toml import read_toml, write_toml
from pykinml_func.data.formats.database import write_database
from pykinml_func.types import Structures


@pytest.fixture
def pykinml(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command in an empty directory; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return partial(run_command, capsys)


@pytest.fixture(scope="module")
def databases(make_structures: Callable[..., Structures], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("databases")
    for formula in ("C2H2", "CH4"):
        write_database(folder / f"{formula}.db", make_structures([formula] * 9, seed=3), {1: "made up"})
    return folder


@pytest.fixture(scope="module")
def trained(databases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run directory of `pykinml train` under PyKinML's option names."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.toml").write_text(
        f'[data]\ninput = "{databases}/*.db"\n[training]\nepochs = 7\nlearning_rate = 0.02\n'
    )
    names = ["--tr_batch_size", 6, "--tvt", "14,4,0", "--LR_patience", 3, "--floss", "--savenm", folder / "run"]
    names += ["--data_path", folder / "prepared", "--no_biases", "--randomseed", "2, 3", "--epochs", 2]
    with pytest.raises(SystemExit) as ended:
        call("train", folder / "run.toml", *names, *SMALL)
    assert ended.value.code == 0
    return folder / "run"


def test_version(pykinml: Run) -> None:
    assert pykinml("--version") == Ended(0, f"{pykinml_func.__version__}\n", "")


def test_help_names_the_commands(pykinml: Run) -> None:
    ended = pykinml("--help")
    assert ended.code == 0
    for command in ("train", "prepare", "predict", "frequencies", "combine", "split", "convert"):
        assert re.search(rf"\b{command}\b", ended.out)


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_help_shows_every_setting_with_its_default_and_unit(pykinml: Run, command: str) -> None:
    ended = pykinml(command, "-h")
    assert ended.code == 0
    text = flat(ended.out)
    options = [f"--{name.replace('_', '-')} " for name in SETTINGS]
    for (name, setting), option, following in zip(SETTINGS.items(), options, [*options[1:], "zzz"], strict=True):
        shown = text.partition(option)[2].partition(following)[0]
        assert flat(setting.description) in shown
        if setting.default not in (None, ()):
            value = (
                {True: "on", False: "off"}[setting.default] if isinstance(setting.default, bool) else setting.default
            )
            listed = ",".join(map(str, value)) if isinstance(value, tuple) else value
            assert f"Default: {listed}." in shown
        theirs = [alias for alias, targets in ALIASES.items() if name in targets]
        for other in theirs + [switch for switch, about in SWITCHES.items() if about == name]:
            assert f"--{other.replace('_', '-')}" in shown.partition("PyKinML:")[2]


def test_help_sorts_settings_into_panels(pykinml: Run) -> None:
    text = flat(pykinml("train", "--help").out)
    data, aevs = text.index("─ Data ─"), text.index("─ AEVs ─")
    assert data < aevs < text.index("─ Networks ─") < text.index("─ Training ─")
    for option in ("--skip-incomplete", "--delta", "--multi-fidelity", "--low-fidelity", "--pre-saved"):
        assert data < text.index(f"{option} ") < aevs


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import pykinml_func.cli, sys; print([m for m in ('torch', 'ase', 'matplotlib', 'aevmod') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_options_win_over_the_file_and_take_pykinmls_names(trained: Path) -> None:
    config = build_config(read_toml(trained / "config.toml"))
    training = config.training
    assert (training.epochs, training.learning_rate, training.batch_size, training.patience) == (2, 0.02, 6, 3)
    assert (training.forces, training.seeds, config.model.biases) == (True, (2, 3), False)
    assert config.data.split == (14, 4, 0)
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in trained.iterdir()} >= {"model.safetensors", "learning_curve.png", "parity.png"}


@pytest.fixture
def configured(pykinml: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """The config that `pykinml train` makes of its arguments."""

    def train(*arguments: object) -> RunConfig:
        made: list[RunConfig] = []

        def take(config: RunConfig, *_: object) -> object:
            made.append(config)
            return SimpleNamespace(stopped_by=0)

        monkeypatch.setattr("pykinml_func.training.fit.fit", take)
        ended = pykinml("train", *arguments)
        assert (ended.code, ended.err) == (0, "")
        return made[0]

    return train


TYPED = {
    "--fidlevel 3": {"fidelity": 3},
    "--fidlevel-lf 0 --delta": {"low_fidelity": [0], "delta": True},
    "--low-fidelity 0,3 --multi_fid": {"low_fidelity": [0, 3], "multi_fidelity": True},
    "--input_data_type pca": {"input_type": "pca"},
    "--input_data_fname a.db --input-data-fname b*.db": {"input": ["a.db", "b*.db"]},
    "--trtsid-name a.txt --trtsid_name b.txt --tvt 36,4,0 --read-trid": {
        "split_files": ["a.txt", "b.txt"],
        "split": [36, 4, 0],
    },
    "--tvt 0.7,0.2,0.1": {"split": [0.7, 0.2, 0.1]},
    "--present_elements C,H": {"elements": ["C", "H"]},
    "--sae-fit": {"fit_self_energies": True},
    "--no-sae-fit": {"fit_self_energies": False},
    "--nameset ts%,min%": {"names": ["ts%", "min%"]},
    "--pre-saved --data_path set": {"pre_saved": True, "prepared": "set"},
    "--optimizer SGD --momentum 0.9 --weight-decay 1e-4": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
    "--optimizer AdamW": {"optimizer": "adamw"},
    "--lrscheduler exp --decayrate 0.9": {"schedule": "exponential", "decay": 0.9},
    "--lrscheduler step --stepsize 30": {"schedule": "step", "step_size": 30},
    "--schedule step --step-size 30": {"schedule": "step", "step_size": 30},
    "--lrscheduler rop --LR_patience 25.0 --LR-threshold 0.1": {"patience": 25, "threshold": 0.1},
    "--learning-rate 0.01 --epochs 3 --save_every 5": {"learning_rate": 0.01, "epochs": 3, "save_every": 5},
    "--load-model --load_model_name a.safetensors": {"start_from": "a.safetensors"},
    "--tr_batch_size 4 --vl_batch_size 5 --ts_batch_size 6": {
        "batch_size": 4,
        "valid_batch_size": 5,
        "test_batch_size": 6,
    },
    "--my-neurons 7,1 --my-actfn tanh,identity": {"neurons": [7, 1], "activations": ["tanh", "identity"]},
    "--no-biases": {"biases": False},
    "--savenm runs/a": {"output": "runs/a"},
    "--randomseed 2,3": {"seeds": [2, 3]},
    "--floss --fw 0.2": {"forces": True, "force_weight": 0.2},
    "--floss --optimize-force-weight": {"forces": True, "learn_loss_weights": True},
    "--recipe fast --ensemble 4 --ensemble-data shared": {"recipe": "fast", "ensemble": 4, "ensemble_data": "shared"},
    "--write-tvtmsk": {},
    "--aev_params 4,3,2": {"n_radial": 4, "n_angular_radial": 3, "n_angular": 2},
    "--cuttoff-radius 4.5,3.5 --beta 0.9": {"radial_cutoff": 4.5, "angular_cutoff": 3.5, "beta": 0.9},
    "--temp 300": {"temperature": 300},
    "--ddp --gpus 1": {"device": "cuda:1"},
    "--num_cores 2": {"threads": 2},
    "--multi_fid --fidlevel_lf 0 --no-pass-eng --no-dscr": {
        "multi_fidelity": True,
        "low_fidelity": [0],
        "pass_energy": False,
        "sum_levels": False,
    },
}


@pytest.mark.parametrize("line", TYPED)
def test_pykinmls_arguments_on_the_command_line(configured: Callable[..., RunConfig], line: str) -> None:
    assert configured(*line.split()) == build_config(TYPED[line])


def test_every_argument_of_pykinml_is_typed_in_a_test() -> None:
    typed = {word.removeprefix("--").replace("-", "_") for line in TYPED for word in line.split()}
    assert typed | {word.removeprefix("no_") for word in typed} >= {*ALIASES, *SWITCHES}


def test_options_empty_and_outdo_what_the_file_says(configured: Callable[..., RunConfig], tmp_path: Path) -> None:
    write_toml(
        tmp_path / "config.toml",
        build_config({"optimizer": "sgd", "names": "ts%", "temperature": 300, "forces": True, "device": "cuda:3"}),
    )
    config = configured("config.toml", "--optimizer", "Adam", "--nameset", "", "--temp", "", "--ddp", "--no-floss")
    assert config == configured("config.toml", "--optimizer", "adam", "--names", "", "--temperature", "", "--no-forces",
        "--device", "cuda")  # fmt: skip
    assert (config.training.optimizer, config.data.names, config.data.temperature) == ("adam", (), None)


def test_train_reuses_what_prepare_made(pykinml: Run, databases: Path, tmp_path: Path) -> None:
    common = ["--input", databases / "C2H2.db", "--input", databases / "CH4.db", *SMALL]
    prepared = pykinml("prepare", *common)
    assert prepared.code == 0 and "made: prepared/" in prepared.out and "18 with 81 atoms" in flat(prepared.out)
    assert not (tmp_path / "runs").exists()
    ended = pykinml("train", *common, "--epochs", 1)
    assert ended.code == 0 and "reused: prepared/" in ended.out
    assert ended.out.splitlines()[-1] == "MODEL: runs/model/model.safetensors"
    assert len(list((tmp_path / "prepared").iterdir())) == 1
    again = pykinml("train", *common, "--epochs", 1)
    assert again.code == 2 and "already holds a run" in again.err
    assert pykinml("train", *common, "--epochs", 1, "--overwrite").code == 0


def pickled(folder: Path, databases: Path) -> Path:
    """A database whose first geometry would run code if it were unpickled."""

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (folder / "ran",))

    path = folder / "C2H2.db"
    path.write_bytes((databases / "C2H2.db").read_bytes())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE xyz SET geom = ? WHERE id = 1", (pickle.dumps(Trap()),))
    return path


BAD_TRAINING = {
    "missing config": (["nothing.toml"], "no configuration file nothing.toml"),
    "directory as config": (["."], "cannot be read"),
    "bad TOML": (["bad.toml"], "bad.toml must be TOML"),
    "unknown name in TOML": (["typo.toml"], "unknown setting 'epoch'; did you mean epochs?"),
    "unknown option": (["--epochz", "3"], "--epochs"),
    "bad value": (["--epochs", "ten"], "epochs must be a whole number, got 'ten'"),
    "seed below 0": (["--seeds", "-1,2"], "seeds must be from 0 to 2**63 - 1, got -1, 2"),
    "unquoted glob": (["--input", "a.db", "{databases}/CH4.db"], "a database; quote globs"),
    "unquoted glob of many": (
        ["--input", "a.db", "b.db", "c.db"],
        "one configuration file is taken, got b.db, c.db; quote",
    ),
    "contradiction": (["--multi_fid", "--delta", "--fidlevel-lf", "0"], "delta and multi_fidelity (your multi_fid)"),
    "contradiction with the file": (["adam.toml", "--momentum", "0.5"], "needs optimizer (in the file) = sgd"),
    "list with blanks": (
        ["--cuttoff-radius", "5.2", "3.8"],
        "file 3.8; lists are separated by commas",
    ),
    "ranks and GPUs": (["--ddp", "--gpus", "0,1", "--ranks", "3"], "ranks must be as many as the GPUs of device"),
    "no model to load": (["--load-model"], "load_model needs load_model_name"),
    "emptied number": (["--epochs", ""], "epochs must not be empty; leave it out for the default, 200"),
    "folder as input": (["--input", "."], "which is a folder; give './*.db'"),
    "bad choice": (["--precision", "half"], "'float64' or 'float32', got 'half'"),
    "two names": (["--fw", "0.2", "--force-weight", "0.2"], "set the same thing (force_weight)"),
    "no input": ([], "input must name at least one file"),
    "no database": (["--input", "nowhere/*.db"], "no file matches 'nowhere/*.db'"),
    "no formula": (["--input", "bad.toml"], "in a format that ASE reads"),
    "no SQLite": (["--input", "CH4.db"], "CH4.db must be in a format that ASE reads"),
    "no structures": (["--input", "{databases}/CH4.db", "--fidelity", "4"], "fidelity 4"),
    "unknown element": (["--input", "{databases}/CH4.db", "--elements", "C,Xx"], "chemical symbols"),
    "missing element": (["--input", "{databases}/CH4.db", "--elements", "C,O"], "got H (first in CH4/1)"),
    "large split": (["--input", "{databases}/CH4.db", "--tvt", "14,4,0"], "the data hold 9"),
    "missing split file": (
        ["--trtsid_name", "no.txt", "--tvt", "3,1", "--input", "{databases}/CH4.db"],
        "no.txt cannot",
    ),
    "diverging": (["--input", "{databases}/CH4.db", "--learning-rate", "1e200", *SMALL], "lower learning_rate"),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("case", BAD_TRAINING)
def test_what_a_user_can_mend_ends_with_a_message_and_code_2(
    pykinml: Run, databases: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    (tmp_path / "typo.toml").write_text("epoch = 3")
    (tmp_path / "adam.toml").write_text('optimizer = "Adam"')
    (tmp_path / "CH4.db").write_text("no database")
    arguments, said = BAD_TRAINING[case]
    ended = pykinml("train", *(argument.format(databases=databases) for argument in arguments))
    assert ended.code == 2
    assert said in flat(ended.err)
    assert not (tmp_path / "runs/model/model.safetensors").exists()


def test_a_pickled_blob_is_refused_and_not_run(pykinml: Run, databases: Path, tmp_path: Path) -> None:
    ended = pykinml("train", "--input", pickled(tmp_path, databases))
    assert ended.code == 2 and "xyz row 1, geom must be a plain .npy array" in flat(ended.err)
    ended = pykinml("predict", tmp_path / "none", tmp_path / "C2H2.db")
    assert ended.code == 2 and "no model file" in ended.err
    assert not (tmp_path / "ran").exists()


def test_the_installed_command_ends_without_a_traceback(tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "pykinml", "train", "nothing.toml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "Error: no configuration file nothing.toml\n"
    assert done.stdout == ""


def test_metrics_are_json_lines(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    kinds = {
        f"{part}_{kind}_{name}"
        for part in ("train", "valid")
        for kind in ("energy", "force")
        for name in ("mae", "rmse", "max")
    }
    assert [set(record) for record in records] == [kinds | {"epoch", "learning_rate", "seconds"}] * 2


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (PermissionError(13, "Permission denied", "runs/model"), 2, "Error: runs/model: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "Error: No space left on device\n"),
        (OSError("the disk is gone"), 2, "Error: the disk is gone\n"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C\n"),
    ],
)
def test_what_stops_the_command_is_told_without_a_traceback(
    pykinml: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, said: str
) -> None:
    def stop(*_: object) -> None:
        raise raised

    monkeypatch.setattr("pykinml_func.training.fit.fit", stop)
    assert pykinml("train", "--input", "CH4.db") == Ended(code, "", said)
