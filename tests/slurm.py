"""Slurm as the tests of its template have it: a job, and stand-ins for the commands that it calls."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

SRUN = f"""#!{sys.executable}
import contextlib, os, signal, subprocess, sys
from pathlib import Path
import psutil

command = next(k for k, word in enumerate(sys.argv[1:], 1) if not word.startswith("--"))
tasks = []

def to_every_process_of_the_step(number, _):  # as Slurm does
    for task in tasks:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(task.pid), *psutil.Process(task.pid).children(recursive=True)]:
                process.send_signal(number)

signal.signal(signal.SIGUSR1, to_every_process_of_the_step)
for node in "01":
    tasks.append(subprocess.Popen(sys.argv[command:], env={{**os.environ, "SLURM_NODEID": node}}))
with Path("steps").open("a") as log:
    print(*sys.argv[command:], file=log)
sys.exit(max(task.wait() % 256 for task in tasks))
"""
"""Starts its command once a node, whatever options it has, and hands signals on."""

SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf '127.0.0.1\\nsecond\\n'; else echo "$*" >> requeued; fi
"""


def free_port(first: int = 20_000) -> int:
    for port in range(first + os.getpid() % 5000, first + 10_000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def end(*processes: subprocess.Popen[Any]) -> None:
    """Leave none behind where a test failed."""
    for process in processes:
        if process.poll() is None:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            process.wait()


class Job:
    """The template, as Slurm runs it."""

    def __init__(self, folder: Path, environment: dict[str, str], torchrun: str = "") -> None:
        """torchrun: a stand-in for it."""
        commands = folder / "commands"
        commands.mkdir(exist_ok=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", torchrun)):
            if text:
                (commands / name).write_text(text)
                (commands / name).chmod(0o755)
        self.folder, self.number = folder, 70_000 + free_port()
        self.started: list[subprocess.Popen[Any]] = []
        slurm = {
            "SLURM_JOB_ID": str(self.number),
            "SLURM_JOB_NODELIST": "127.0.0.1,second",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "1",
        }
        self._environment = {**environment, **slurm, "PATH": f"{commands}{os.pathsep}{environment['PATH']}"}

    def start(self) -> subprocess.Popen[Any]:
        self.started.append(subprocess.Popen(["bash", "train.sbatch"], cwd=self.folder, env=self._environment))
        return self.started[-1]

    def is_queued_again(self) -> bool:
        log = self.folder / "requeued"
        return log.exists() and log.read_text() == f"requeue {self.number}\n"

    @property
    def steps(self) -> list[str]:
        """The command of each step that was started."""
        return (self.folder / "steps").read_text().splitlines()
