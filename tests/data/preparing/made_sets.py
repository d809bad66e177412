"""Preparing in another process, which may be killed in the middle. Its arguments are JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pykinml_func.config import AEVConfig, DataConfig
from pykinml_func.data.formats import database_reader
from pykinml_func.data.prepared import PreparedSet, complete, open_prepared
from pykinml_func.data.preparing import computed, piece_workers, pieces

AEV = AEVConfig(n_radial=3, n_angular_radial=2, n_angular=2)

SMALL = ((database_reader, "BLOCK_ROWS", 1000), (pieces, "BLOCK_ROWS", 1000), (piece_workers, "_ROWS_A_WORKER", 1000))
"""Pieces of a thousand rows, each of which is worth a process."""

STRETCH = (computed, "_STRETCH_BYTES", 2**14)

Heard = Callable[[str, int], Callable[[int], None]]


def prepared(folder: Path, workers: int = 1, heard: Heard = lambda *_: lambda _: None) -> PreparedSet:
    data = DataConfig(input=(str(folder / "*.db"),), prepared=folder / "prepared", workers=workers)
    found = open_prepared(data, AEV, "float64", heard)
    complete(found, "jacobians", heard)
    return found


def start(folder: Path, **given: Any) -> subprocess.Popen[str]:
    """A process that prepares the folder's databases; given: see `main`."""
    arguments = json.dumps({"folder": str(folder), **given})
    return subprocess.Popen(
        [sys.executable, __file__, arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def main(folder: str, workers: int = 1, kill_at: tuple[str, int] = ("", 0), slow: float = 0.0) -> None:
    """Prepare, and print what was read; kill_at: what is done then, and of how many structures at least; slow: seconds
    that hearing of a piece that was read takes.
    """
    for module, name, value in (*SMALL, STRETCH):
        setattr(module, name, value)

    def heard(name: str, _: int) -> Callable[[int], None]:
        print(name, flush=True)
        done = 0

        def advance(number: int) -> None:
            nonlocal done
            done += number
            time.sleep(slow * (name == "structures"))
            if name == kill_at[0] and done >= kill_at[1]:
                os.kill(os.getpid(), signal.SIGKILL)

        return advance

    print("reused" if prepared(Path(folder), workers, heard).reused else "made")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
