"""Two nodes, both of them this machine: a torchrun each, started by hand or by the template, which meets stand-ins for
Slurm's commands.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from slurm import Job, end, free_port
from torch.utils._pytree import tree_leaves

from pykinml_func.config.build import build_config
from pykinml_func.config.toml import read_toml
from pykinml_func.training.fit import fit
from pykinml_func.training.model_file import load_model
from pykinml_func.training.reporter import SilentReporter

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Slurm and its signals are not there")

EXAMPLES = Path(__file__).parents[1] / "examples"
TEMPLATE = EXAMPLES / "06_multi_node/train.sbatch"
RUN = Path("runs/multi_node")
EPOCHS = 60
SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"

SETTINGS = f"""
input = ["{EXAMPLES}/data/CH4.db"]
split = [22, 4, 4]
forces = true
batch_size = 7 # the last one, of one structure, leaves a rank without any
learning_rate = 3e-4
neurons = [5, 3, 1]
activations = ["tanh", "gaussian", "identity"]
n_radial = 4
n_angular_radial = 2
n_angular = 2
epochs = {EPOCHS}
threads = 1
compile = "off"
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = folder_of_a_job(tmp_path_factory.mktemp("alone"), prepared)
    config = build_config({"output": str(folder / RUN)}, read_toml(folder / "run.toml"))
    fit(config, SilentReporter())
    return folder / RUN


@pytest.fixture(scope="module")
def together(
    alone: Path, prepared: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of two torchruns, from its start to its end, on data that `alone` prepared."""
    assert alone.is_dir()
    folder = folder_of_a_job(tmp_path_factory.mktemp("together"), prepared)
    command = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "by_hand"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "-m", "pykinml_func", "train", "run.toml"]
    command += ["--output", str(RUN)]
    nodes = [subprocess.Popen(command, cwd=folder, env=environment) for _ in range(2)]
    try:
        assert [node.wait(60) for node in nodes] == [0, 0]
    finally:
        end(*nodes)
    return folder / RUN


def folder_of_a_job(folder: Path, prepared: Path) -> Path:
    shutil.copy(TEMPLATE, folder)
    (folder / "run.toml").write_text(f'{SETTINGS}prepared = "{prepared}"\n')
    return folder


def records(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in found]


def assert_same_run(run: Path, reference: Path, tolerance: float) -> None:
    for one, other in zip(records(run), records(reference), strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    models = [tree_leaves(load_model(folder / "model.safetensors")[1]) for folder in (run, reference)]
    for own, theirs in zip(*models, strict=True):
        torch.testing.assert_close(own, theirs, rtol=tolerance, atol=tolerance)


@pytest.fixture
def make_job(tmp_path: Path, prepared: Path, environment: dict[str, str]) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(torchrun: str = "") -> Job:
        jobs.append(Job(folder_of_a_job(tmp_path, prepared), environment, torchrun))
        return jobs[-1]

    yield make
    end(*(started for job in jobs for started in job.started))


def wait_for(*paths: Path) -> None:
    end = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"want of {paths}"
        time.sleep(0.01)


def test_two_torchruns_train_to_what_one_process_does(alone: Path, together: Path) -> None:
    assert len(records(alone)) == EPOCHS
    assert_same_run(together, alone, 1e-10)
    assert len(list((together / "checkpoints").iterdir())) == EPOCHS // 10


def test_a_job_that_is_warned_saves_and_the_next_goes_on(make_job: Callable[..., Job], together: Path) -> None:
    job = make_job()
    first = job.start()
    wait_for(job.folder / RUN / "metrics.jsonl")
    first.send_signal(signal.SIGUSR1)
    assert first.wait(60) != 0
    assert job.is_queued_again()
    assert f"run.toml --output {RUN}" in job.steps[0]
    assert 0 < len(records(job.folder / RUN)) < EPOCHS
    assert list((job.folder / RUN / "checkpoints").iterdir())

    assert job.start().wait(60) == 0
    assert job.is_queued_again()  # once, by the first
    assert job.steps[1].endswith(f"--resume {RUN}")
    assert_same_run(job.folder / RUN, together, 1e-10)


def test_a_step_is_a_torchrun_a_node_that_meets_on_the_first(make_job: Callable[..., Job]) -> None:
    job = make_job("#!/bin/bash\n")
    assert job.start().wait(20) == 0
    (step,) = job.steps
    assert step.startswith("torchrun --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d ")
    assert f" --rdzv-endpoint=127.0.0.1:{20_000 + job.number % 10_000} " in step
    assert f" {SIGNALS} " in step


def test_a_run_without_a_checkpoint_begins_anew(make_job: Callable[..., Job]) -> None:
    job = make_job("#!/bin/bash\n")
    (job.folder / RUN / "checkpoints").mkdir(parents=True)
    assert job.start().wait(20) == 0
    assert job.steps[0].endswith(f"-m pykinml_func train run.toml --output {RUN} --overwrite")


def test_a_job_that_fails_is_not_queued_again(make_job: Callable[..., Job]) -> None:
    job = make_job("#!/bin/bash\nexit 3\n")
    assert job.start().wait(20) == 3
    assert not job.is_queued_again()


@pytest.mark.parametrize("code", [0, 1])
def test_a_warned_job_is_queued_again_unless_it_is_done(make_job: Callable[..., Job], code: int) -> None:
    job = make_job(f"#!/bin/bash\ntrap 'exit {code}' USR1\ntouch started$SLURM_NODEID\nsleep 20 & wait\n")
    started = job.start()
    wait_for(job.folder / "steps", job.folder / "started0", job.folder / "started1")
    started.send_signal(signal.SIGUSR1)
    assert started.wait(20) == code
    assert job.is_queued_again() == (code != 0)


def test_the_examples_settings_are_taken() -> None:
    file = TEMPLATE.with_name("run.toml")
    config = build_config({}, read_toml(file))
    assert config.training.device == "cuda" and config.training.forces
    assert any(Path(pattern).parent.samefile(EXAMPLES / "data") for pattern in config.data.input)


def test_the_template_lets_ranks_save_in_time() -> None:
    """Slurm may warn a minute early; torchrun's patience with its ranks, and srun's with nodes, end before the job."""
    text = TEMPLATE.read_text()

    def seconds(before: str) -> int:
        return int(text.partition(before)[2].split()[0])

    assert seconds("--shutdown-timeout=") + seconds("--wait=") < seconds("--signal=B:USR1@")
