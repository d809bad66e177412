"""Pieces read by several processes, each a `main` of this module that is asked a piece a line.

They are started as commands and not by `multiprocessing`, which would run the user's script again in each of them, or
copy a process in which torch has threads. They load no torch. One whose parent is killed ends after its piece, when
nothing more is asked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from pykinml_func.data.preparing.pieces import Piece, piece_as_json, piece_of_json, write_piece
from pykinml_func.errors import DataError, PyKinMLError

_ROWS_A_WORKER = 100_000
"""Rows of a database that are read in 0.7 s; to start a process takes half of that."""


_LEFT_TO_THE_PARENT = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Signals that a scheduler sends to all processes of a job."""


def read_pieces(pieces: Sequence[Piece], folder: Path, workers: int) -> Iterator[Piece]:
    """Read pieces into `folder`, and give each, in their order, when it is there. Raises DataError.

    workers: processes at most; fewer, or none but this one, where there is too little to read; 0: one a core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    repaid = sum(piece.size for piece in pieces) // _ROWS_A_WORKER
    count = min(workers or cores, len(pieces), repaid)
    if count < 2:
        for piece in pieces:
            write_piece(piece, folder)
            yield piece
        return
    with ExitStack() as stack:
        yield from _asked(pieces, [stack.enter_context(_Worker(folder)) for _ in range(count)])


def _asked(pieces: Sequence[Piece], workers: Sequence[_Worker]) -> Iterator[Piece]:
    """The pieces in their order, when they are read. Whatever ends it ends the workers."""
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(piece: Piece) -> Piece:
        worker = idle.get()
        try:
            worker.ask(piece)
        finally:
            idle.put(worker)
        return piece

    with ThreadPoolExecutor(len(workers)) as threads:
        try:
            yield from threads.map(ask, pieces)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.kill()


class _Worker:
    """One of the processes, and this one's side of it."""

    def __init__(self, folder: Path) -> None:
        """folder: where pieces go."""
        run = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main(sys.argv[1])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", run, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            process_group=0,  # a terminal's Ctrl-C is for this process, which then ends them
        )

    def __enter__(self) -> Self:
        """Ends with the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `kill`."""
        self.kill()
        self._process.communicate()

    def kill(self) -> None:
        """End the process, in the middle of a piece if it has one."""
        self._process.kill()

    def ask(self, piece: Piece) -> None:
        """Have a piece read. Raises DataError as reading it here would."""
        asked, answers = self._process.stdin, self._process.stdout
        line = ""
        if asked is not None and answers is not None:
            with suppress(BrokenPipeError):
                asked.write(piece_as_json(piece) + "\n")
                asked.flush()
                line = answers.readline()
        if not line:
            raise DataError(
                f"{piece.parts[0].path} must be read to its end, and the process that did ended with code "
                f"{self._process.wait()} (what it printed stands above); run again, which goes on from there, with "
                "--workers 1 if memory was short"
            )
        error = json.loads(line)
        if error is not None:
            raise DataError(error)


def main(folder: str) -> None:
    """Read the pieces that come on the standard input into `folder`; answer each with its error, or null."""
    for name in _LEFT_TO_THE_PARENT:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        error = None
        try:
            write_piece(piece_of_json(line), Path(folder))
        except PyKinMLError as found:
            error = str(found)
        try:
            os.write(answers, (json.dumps(error) + "\n").encode())
        except BrokenPipeError:
            return  # nobody asks any more
