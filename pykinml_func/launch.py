"""Starting the ranks of a run on this machine, as torchrun would."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from uuid import uuid4

_HANDED_ON = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Signals at which ranks save and stop by themselves, with an exit code that tells how they did."""

_DEADLY = "SIGHUP,SIGQUIT"
"""Signals at which the launcher ends the ranks."""


def is_launched() -> bool:
    """Whether this process is a rank that torchrun, `launch` or something like them started."""
    return "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], ranks: int) -> int:
    """Run `pykinml ARGUMENTS` in as many processes.

    Returns the exit code of the rank that failed first, 128 and its number where it was a signal, or 0.
    """
    from torch.distributed.elastic.agent.server.api import SignalException  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the rank that failed says more
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=_DEADLY,
    )
    try:
        with _handing_on() as handed_on:
            elastic_launch(config, sys.executable)("-m", "pykinml_func", *arguments)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        if -failure.exitcode not in handed_on:
            print(f"Error: rank {rank} was ended by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)
        return 128 - failure.exitcode
    except SignalException as caught:
        return 128 + caught.sigval
    return 0


@contextmanager
def _handing_on() -> Iterator[list[int]]:
    """Hand signals on to the ranks for a while. Yields those that were."""
    import psutil

    handed_on: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        ranks = psutil.Process().children()
        if not ranks:  # not started yet
            signal.signal(number, before[number])
            signal.raise_signal(number)
        handed_on.append(number)
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    numbers = [getattr(signal, name) for name in _HANDED_ON if hasattr(signal, name)]
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield handed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
