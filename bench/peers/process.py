"""The harness's side of a worker: a process that is asked one thing at a time and idles between."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any, NamedTuple, Self

from bench.peers.protocol import Answer

ROOT = Path(__file__).parents[2]
_LONGEST = 1800.0
"""seconds that an answer may take: torch.compile needs minutes, PyKinML's Jacobians too"""


class Settings(NamedTuple):
    """What every worker is told when it starts."""

    data: Path
    scratch: Path
    problem: Path
    threads: int
    device: str

    def as_json(self, dtype: str, **more: float) -> str:
        """For the command line."""
        return json.dumps({**self._asdict(), "dtype": dtype, **more}, default=str)  # paths are text there


class Worker:
    """One tool's process, in one precision."""

    def __init__(self, tool: str, python: Path, settings: Settings, dtype: str) -> None:
        """tool: own, pykinml, torchani or fennol; python: that of its environment."""
        self._log = (settings.scratch / f"{tool}_{dtype}.log").open("a")
        self._process = subprocess.Popen(
            [python, "-m", f"bench.peers.{tool}_worker", settings.as_json(dtype)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=worker_variables(tool, settings.threads),
        )

    def __enter__(self) -> Self:
        """Ends with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], longest: float = _LONGEST) -> Answer:
        """The answer, or why there is none under "unavailable"."""
        asked, answers = self._process.stdin, self._process.stdout
        if asked is None or answers is None or not self.alive:
            return {"unavailable": "its process had ended"}
        try:
            asked.write(json.dumps(request) + "\n")
            asked.flush()
        except BrokenPipeError:
            return {"unavailable": "its process ended"}
        if not select.select([answers], [], [], longest)[0]:
            self._process.kill()
            return {"unavailable": f"no answer within {longest:.0f} s"}
        line = answers.readline()
        answer: Answer = json.loads(line) if line else {"unavailable": "its process ended"}
        return answer

    def close(self) -> None:
        """End the process; one that does not end by itself is killed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def worker_variables(tool: str, threads: int) -> dict[str, str]:
    """The environment of a tool's process: it imports from this repository, and what PyKinML lacks."""
    path = [str(ROOT), *([str(ROOT / "bench/peers/stand_ins")] if tool == "pykinml" else [])]
    return {**thread_variables(threads), "PYTHONPATH": os.pathsep.join(path)}


def thread_variables(threads: int) -> dict[str, str]:
    """The environment of a process that takes so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}
