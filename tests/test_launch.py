"""`pykinml train` by several ranks, started for real: how it ends where one of them fails, is killed, or gets a signal.

Whatever happens, all processes end within half a minute, and what one rank has to say stands there once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psutil
import pytest
from cli_calls import SMALL

from pykinml_func.data.formats.database import write_database
from pykinml_func.training.checkpoint import newest_checkpoint
from pykinml_func.types import Structures

TESTS = Path(__file__).parent
PATIENCE = 30
"""Seconds in which all processes end."""

COMMAND = ["-m", "pykinml_func"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "localhost:0", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1", *COMMAND]
SHORT = ["--epochs", "2"]
ENDLESS = ["--epochs", "100000", "--save-every", "100000"]


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float
    """from what happened to the end of the last process"""


class Process:
    """A command that is going on, and all processes that it has started."""

    def __init__(self, folder: Path, command: Sequence[object], **environment: str) -> None:
        """environment: MISHAP, the rank, the batch and what befalls it there."""
        self._folder, self._mark = folder, uuid4().hex
        path = os.pathsep.join(map(str, (TESTS / "training" / "faulty", TESTS / "training", TESTS.parent)))
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "MARK": self._mark, **environment}
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            self.popen = subprocess.Popen(
                [sys.executable, *map(str, command)], env=os.environ | own, cwd=folder, stdout=out, stderr=err
            )
        self._struck = 0.0

    def send(self, number: int, when: Callable[[], bool]) -> None:
        """A signal to the process that was started."""
        deadline = time.monotonic() + 60
        while not when():
            assert self.popen.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        self._struck = time.time()
        self.popen.send_signal(number)

    def wait(self) -> Ended:
        """The end. None of the processes may be left."""
        code = self.popen.wait(60 + PATIENCE)
        assert psutil.wait_procs(self._members(), timeout=PATIENCE)[1] == []
        struck = self._folder / "struck"
        started = struck.stat().st_mtime if struck.exists() else self._struck or time.time()
        texts = [(self._folder / name).read_text() for name in ("out", "err")]
        return Ended(code, *texts, time.time() - started)

    def _members(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == self._mark:
                    found.append(process)
            except psutil.Error:  # it has just ended, or is another user's
                continue
        return found


@pytest.fixture(scope="module")
def data(make_structures: Callable[..., Structures], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options of a run on some structures, of four batches an epoch and two of validation."""
    folder = tmp_path_factory.mktemp("data")
    for formula in ("C2H2", "CH4"):
        write_database(folder / f"{formula}.db", make_structures([formula] * 12, seed=3), {1: "made up"})
    options: list[object] = ["--input", folder / "*.db", "--prepared", folder / "prepared", "--split", "16,4,4"]
    return [*options, "--batch-size", 5, "--valid-batch-size", 2, *SMALL, "--output", "run"]


@pytest.fixture
def train(data: list[object], tmp_path: Path) -> Callable[..., Process]:
    """Starts `pykinml train` with two ranks."""

    def start(*options: object, command: Sequence[str] = COMMAND, mishap: str = "", **environment: str) -> Process:
        ranks = ["--ranks", 2] if command == COMMAND else []
        return Process(tmp_path, [*command, "train", *data, *ranks, *options], MISHAP=mishap, **environment)

    return start


def test_an_error_of_one_rank_is_told_once(train: Callable[..., Process], tmp_path: Path) -> None:
    ended = train(*ENDLESS, mishap="1 9 PyKinMLError").wait()
    assert (ended.code, ended.err) == (2, "Error: rank 1: the data have a fault; mend it\n")
    assert ended.seconds < PATIENCE
    assert (tmp_path / "run" / "model.safetensors").exists()  # of the first epoch


def test_a_fault_of_the_code_on_one_rank_shows_where_it_is(train: Callable[..., Process]) -> None:
    ended = train(*ENDLESS, mishap="1 9 RuntimeError").wait()
    assert ended.code == 1 and ended.seconds < PATIENCE
    assert ended.err.count("RuntimeError: the code has a fault") == ended.err.count("Traceback") == 1


def test_a_rank_that_is_killed_ends_all(train: Callable[..., Process]) -> None:
    ended = train(*ENDLESS, mishap="1 9 SIGKILL").wait()
    assert ended.code == 128 + signal.SIGKILL and ended.seconds < PATIENCE
    lines = ended.err.splitlines()
    assert len(lines) == 2 and "Traceback" not in ended.err
    assert lines[0].startswith("Error: rank 0 lost another rank, which was killed or cut off; go on from the last")
    assert lines[1] == "Error: rank 1 was ended by SIGKILL"


def test_data_that_the_first_rank_finds_wrong_are_told_once(train: Callable[..., Process], tmp_path: Path) -> None:
    """While the other one waits for it to prepare them."""
    ended = train(*SHORT, "--split", "20,0,4").wait()
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert ended.err.startswith("Error: rank 0: split must leave structures to train on, and some")
    assert not (tmp_path / "run").exists()


def test_what_all_ranks_find_wrong_is_told_once(train: Callable[..., Process]) -> None:
    ended = train(*SHORT, "--compile", "on", CXX="no-such-compiler").wait()
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert ended.err.startswith("Error: compile = on needs a C++ compiler, and none was found")


def test_ctrl_c_that_one_rank_hears_stops_all(train: Callable[..., Process], tmp_path: Path) -> None:
    ended = train(*ENDLESS, mishap="1 9 SIGINT").wait()
    assert (ended.code, ended.err) == (130, "stopped by Ctrl-C\n")
    assert ended.seconds < PATIENCE
    assert newest_checkpoint(tmp_path / "run").stem == "epoch_00001_batch_0000004"


def test_a_signal_to_one_rank_stops_all_of_them_to_be_resumed(train: Callable[..., Process], tmp_path: Path) -> None:
    ended = train("--epochs", 3, mishap="1 9 SIGTERM").wait()
    assert (ended.code, ended.err) == (75, "stopped by SIGTERM; go on with: pykinml train --resume run\n")
    assert newest_checkpoint(tmp_path / "run").stem == "epoch_00001_batch_0000004"
    resumed = Process(tmp_path, [*COMMAND, "train", "--resume", "run", "--ranks", 2]).wait()
    assert (resumed.code, resumed.err) == (0, "")
    for once in ("\nData\n", "C2H2.db: PyKinML database", "\nTraining\n", "MODEL: run/model.safetensors"):
        assert resumed.out.count(once) == 1  # the first rank alone prints
    assert len(list(tmp_path.rglob("config.toml"))) == 1
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]


@pytest.mark.parametrize(
    ("command", "number", "code", "said"),
    [
        (COMMAND, signal.SIGINT, 130, "stopped by Ctrl-C\n"),
        (COMMAND, signal.SIGTERM, 75, "stopped by SIGTERM; go on with: pykinml train --resume run\n"),
        (COMMAND, signal.SIGUSR1, 75, "stopped by SIGUSR1; go on with: pykinml train --resume run\n"),
        (TORCHRUN, signal.SIGUSR1, 1, "stopped by SIGUSR1; go on with: pykinml train --resume run\n"),
    ],
    ids=lambda value: getattr(value, "name", None) or ("torchrun" if value is TORCHRUN else ""),
)
def test_who_started_the_ranks_hands_signals_on(
    train: Callable[..., Process], tmp_path: Path, command: list[str], number: int, code: int, said: str
) -> None:
    going = train(*ENDLESS, command=command)
    going.send(number, (tmp_path / "run" / "metrics.jsonl").exists)
    ended = going.wait()
    assert ended.code == code and ended.seconds < PATIENCE
    assert ended.err.count(said) == 1 if command == TORCHRUN else ended.err == said
    assert "_batch_" in newest_checkpoint(tmp_path / "run").stem


def test_a_signal_before_there_are_ranks_ends_the_launcher(train: Callable[..., Process], tmp_path: Path) -> None:
    going = train(*ENDLESS)
    going.send(signal.SIGTERM, lambda: True)
    ended = going.wait()
    assert ended.code in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert not (tmp_path / "run" / "checkpoints").exists()
