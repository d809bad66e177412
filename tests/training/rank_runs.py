"""Started by torchrun in the tests: several runs, one after the other, by as many ranks as there are.

Each run is a dict of its settings, whether to resume it, and what befalls one rank (rank, batch, what). What each rank
found is written beside the run directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mishap import befall, spare
from runs import Listener

from pykinml_func.config.build import build_config
from pykinml_func.training.fit import fit


def train_by(ranks: int, runs: Sequence[dict[str, Any]], folder: Path) -> None:
    """Start that many ranks, which train each of the runs."""
    listed = folder / f"runs_{ranks}.json"
    listed.write_text(json.dumps(runs, default=str))
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (root, Path(__file__).parent)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    command += ["--nproc-per-node", str(ranks), __file__, str(listed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def found_by(rank: int, output: Path) -> dict[str, Any]:
    """What a rank found in a run."""
    found: dict[str, Any] = json.loads(_account(rank, output).read_text())
    return found


def _account(rank: int, output: Path) -> Path:
    return output.with_name(f"{output.name}.{rank}.json")


def _train(rank: int, run: dict[str, Any]) -> None:
    struck, *blow = run.get("mishap", (None,))
    if struck == rank:
        befall(*blow)
    listener, config = Listener(), build_config(run["settings"])
    result = fit(config, listener, resume=run.get("resume", False))
    spare()
    found = {"history": result.history, "errors": result.errors, "stopped_by": result.stopped_by}
    found["heard"], found["predicted"] = listener.epochs, sorted(result.predictions)
    _account(rank, config.training.output).write_text(json.dumps(found))


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        _train(int(os.environ["RANK"]), each)
