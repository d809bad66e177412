"""One rank of a run that `bench.scaling` times: torchrun starts it, `fit` trains, a clock hears of the gradients.

    torchrun --nproc-per-node 2 -m bench.scaling_rank SETTINGS FOLDER

SETTINGS: of `pykinml train`, as JSON; FOLDER: where each rank writes what it saw, as RANK.json.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pykinml_func.config.build import build_config
from pykinml_func.training import distributed
from pykinml_func.training.fit import fit
from pykinml_func.training.reporter import SilentReporter


class Clock:
    """Times every addition of gradients over the ranks, by a clock that the processes of a machine share."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.calls: list[tuple[float, float]] = []
        """s, when this rank had its gradients, and when it had everyone's"""
        self.n_bytes = 0
        """of the gradients"""

    def shared(self, module: nn.Module, **options: Any) -> DistributedDataParallel:
        """What the training step takes for torch's own, which adds up gradients under this clock."""
        found = DistributedDataParallel(module, **options)
        found.register_comm_hook(None, self._all_reduce)
        return found

    # torch looks at the annotations themselves, so that they cannot be text (`from __future__`)
    def _all_reduce(self, _: object, bucket: GradBucket) -> Future[torch.Tensor]:
        """The mean over ranks, as torch's own. All gradients are one bucket: nothing is left to do meanwhile."""
        buffer = bucket.buffer().div_(dist.get_world_size())
        _finish(buffer)
        started = time.perf_counter()
        dist.all_reduce(buffer)
        _finish(buffer)
        self.calls.append((started, time.perf_counter()))
        self.n_bytes = buffer.nbytes
        done: Future[torch.Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else None)
        done.set_result(buffer)
        return done


def _finish(tensor: torch.Tensor) -> None:
    """Wait for what a GPU has been told to do."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def main() -> None:
    """Train, and write the seconds of each epoch and the times of each addition."""
    settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    clock = Clock()
    with patch.object(distributed, "DistributedDataParallel", clock.shared):
        result = fit(build_config(settings), SilentReporter(), overwrite=True)
    seconds = [record["seconds"] for record in result.history]
    found = {"seconds": seconds, "calls": clock.calls, "n_bytes": clock.n_bytes}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
