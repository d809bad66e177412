"""The processes that train together: how one joins the others, what they tell each other, and how all of them end.

torchrun (or `launch.launch`) starts them; a process that was started otherwise is rank 0 of 1, for which nothing here
costs anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from pykinml_func.errors import ConfigError, PeerFailedError, PyKinMLError, RankError

_GLANCE = 0.1
"""Seconds between two looks at whether the first rank is done."""

_FAILURES = "failures"
"""In the store: how many ranks failed."""

_GRACE = 5
"""Seconds in which whoever started the ranks ends this one too, once the one that failed has said why."""


class Ranks:
    """All ranks, as one of them sees them."""

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        """device: what this rank computes on; store: through which ranks talk where there are several."""
        self.device, self.rank, self.size, self._store = device, rank, size, store
        # on the host, and apart from the gradients', so that no accelerator waits for it
        self._group = dist.new_group(backend="gloo") if size > 1 else None
        self._asked: tuple[Tensor, Any] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0

    @contextmanager
    def first_rank_first(self, what: str) -> Iterator[None]:
        """Let the first rank do something before the others do the same: what it then finds done, they find too."""
        if self._store is not None and not self.is_first:
            while not self._store.check([what]):  # Ctrl-C is heard between two looks
                if self._store.check([_FAILURES]):
                    raise PeerFailedError
                time.sleep(_GLANCE)
        yield
        if self._store is not None and self.is_first:
            self._store.set(what, "done")

    def signal_of_any(self, own: int) -> int:
        """A signal that some rank had got when all called this the last time, so that none waits for another here.

        own: the signal that this rank got; 0 for none.
        """
        if self.size == 1:
            return own
        found = 0
        if self._asked is not None:
            answer, work = self._asked
            work.wait()
            found = int(answer)
        question = torch.tensor(own)
        self._asked = question, dist.all_reduce(question, dist.ReduceOp.MAX, self._group, async_op=True)
        return found

    def total(self, sums: Tensor) -> Tensor:
        """The sum over ranks of a tensor, on the host."""
        return self._reduced(sums, dist.ReduceOp.SUM)

    def largest(self, values: Tensor) -> Tensor:
        """The largest over ranks of each number of a tensor, on the host."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.total(torch.zeros(1))

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        found = values.cpu()
        if self.size > 1:
            found = found.clone()
            dist.all_reduce(found, operation, self._group)
        return found


@contextmanager
def joined(device: str, ranks: int) -> Iterator[Ranks]:
    """Join the other ranks, on whose failure this one ends too; all of them as often as one.

    device: torch's name, in which each rank finds its own: cuda, or cuda:0,1; ranks: how many the settings ask for.
    Raises ConfigError for a device that is not there, and where several ranks are wanted and nobody started them;
    RankError for this rank's own failure, and PeerFailedError where another one told its own.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if ranks > 1 and "WORLD_SIZE" not in os.environ:
            raise ConfigError(
                f"{ranks} ranks train in as many processes, and this is one alone; start them with `pykinml train`, or "
                f"with torchrun --nproc-per-node {ranks}"
            )
        yield Ranks(_device(device, 0))
        return
    everyone, rank, size = next(rendezvous("env://"))
    meeting = everyone.add(f"meetings of rank {rank}", 1)
    store = PrefixStore(f"pykinml {meeting}", everyone)
    with _together(rank, store):
        place = _device(device, int(os.environ["LOCAL_RANK"]))
        if place.type == "cuda":
            torch.cuda.set_device(place)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
        try:
            yield Ranks(place, rank, size, store)
        finally:
            dist.destroy_process_group()


@contextmanager
def _together(rank: int, store: Store) -> Iterator[None]:
    """Of several ranks that fail, let the first alone say why: the others mostly fail for want of it."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not _fails_first(store):
            time.sleep(_GRACE)
            raise PeerFailedError from None
        if isinstance(error, PyKinMLError):
            raise RankError(f"rank {rank}: {error}") from error
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise RankError(
                f"rank {rank} lost another rank, which was killed or cut off; go on from the last checkpoint with "
                "`pykinml train --resume`"
            ) from error
        raise


def _fails_first(store: Store) -> bool:
    """Whether no other rank failed before this one."""
    try:
        return store.add(_FAILURES, 1) == 1
    except RuntimeError:  # who held the store is gone too
        return True


def _device(name: str, local_rank: int) -> torch.device:
    """The device of a rank. local_rank: its number among those of its machine."""
    kind, _, numbers = name.partition(":")
    several = numbers.split(",")
    if "LOCAL_RANK" in os.environ and kind != "cpu":
        if numbers and local_rank >= len(several):
            raise ConfigError(
                f"device must name a GPU for each rank of a machine, got {name} for rank {local_rank}; name more, "
                f"start fewer ranks, or give {kind} alone, of which each rank finds its own"
            )
        numbers = several[local_rank] if numbers else str(local_rank)
    try:
        device = torch.device(f"{kind}:{numbers}" if numbers else kind)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"device must be one that torch can use here, got {name!r} ({error}); e.g. cpu") from None
    return device
