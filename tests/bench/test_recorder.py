from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bench.recorder import Recorder
from pykinml_func.config.build import build_config
from pykinml_func.training.fit import fit

DATA = Path(__file__).parents[2] / "examples" / "data" / "CH4.db"


class Profiler:
    """Counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")


@pytest.mark.parametrize("profiled", [False, True])
def test_a_run_ends_after_the_epochs_that_are_timed(tmp_path: Path, profiled: bool) -> None:
    """As Ctrl-C ends it: with a model, and no error. The epoch that is profiled comes after those."""
    profiler = Profiler()
    recorder = Recorder(2, 3, profiler if profiled else None)  # type: ignore[arg-type]
    settings = {"input": (str(DATA),), "skip_incomplete": True, "prepared": tmp_path, "output": tmp_path / "run"}
    result = fit(build_config({**settings, "neurons": (4, 1), "activations": ("tanh", "identity")}), recorder)
    assert result.stopped_by == signal.SIGINT and len(result.history) == 5 + profiled
    assert recorder.seconds == [record["seconds"] for record in result.history[2:5]]
    assert recorder.first == result.history[0]["seconds"]
    assert profiler.calls == ["start", "stop"] * profiled
