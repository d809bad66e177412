"""What `bench.limit` makes of rates, counts and profiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.counts import Near, Work, task_work
from bench.limit import MODEL, STRUCTURES, epoch_work, limit_seconds, repeated
from bench.rates import all_rates, best_seconds
from bench.recorder import Recorder
from bench.split import kind_of, profiler, split_of
from pykinml_func.potential import aev_kernel
from pykinml_func.training.compilation import RecordedStep

ROOT = Path(__file__).parents[2]
RATES = {"matmul": 10.0, "layer": 5.0, "read": 2.0, "copy": 4.0, "exp_torch": 1.0, "exp_kernel": 4.0}


def test_arithmetic_hides_reading_but_not_exponentials():
    assert limit_seconds(Work(flops=30, n_bytes=2), RATES) == 3
    assert limit_seconds(Work(flops=30, n_bytes=8), RATES) == 4
    assert limit_seconds(Work(flops=30, exponentials=8), RATES) == 5
    assert limit_seconds(Work(exponentials=8), {name: RATES[name] for name in RATES if name != "exp_kernel"}) == 8


def test_an_epoch_is_training_and_validation():
    near = Near(*(STRUCTURES * count for count in (10, 80, 200, 90)))
    trained, judged = (Near(*(part * count for count in (10, 80, 200, 90))) for part in (2000, 48))
    forces = {"forces": True, "force_path": "positions"}
    training = task_work(MODEL, trained, "train_forces", "positions", 8)
    assert epoch_work(near, forces) == training.plus(task_work(MODEL, judged, "energies_and_forces", "positions", 8))
    energies = task_work(MODEL, trained, "train_energies", "aevs", 8)
    assert epoch_work(near, {}) == energies.plus(task_work(MODEL, judged, "energies", "aevs", 8))


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("pykinml::push_aevs", "aev"),
        ("aten::bmm", "matmul"),
        ("aten::index_add", "elementwise"),
        ("## Call CompiledFxGraph fabc ##", "elementwise"),
        ("aten::view", None),
        ("UnsqueezeBackward0", None),
    ],
)
def test_operations_are_told_apart(operation: str, kind: str | None):
    assert kind_of(operation) == kind


def test_a_split_is_of_the_seconds_without_profiler():
    left, right = torch.rand(2, 400, 400, dtype=torch.float64)

    def work() -> None:
        (left @ right).exp()

    with profiler() as profiled:
        work()
    found = split_of(profiled, 10.0)
    assert sum(found) == pytest.approx(10)
    assert found.matmul > found.elementwise > 0 and found.aev == 0 and found.overhead > 9
    assert split_of(profiled, 0.0).overhead == 0, "never less than nothing"


@pytest.mark.parametrize("eager_calls", [0, 100])
def test_compiled_aevs_are_seen_in_recorded_steps_too(eager_calls: int):
    """Which call them without torch's knowledge."""
    if not aev_kernel.available():
        pytest.skip("needs the compiled AEVs")
    positions = torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    atoms = aev_kernel.Atoms(torch.arange(40), torch.tensor([0, 40]), torch.zeros(40, dtype=torch.int64))
    step = RecordedStep(lambda moved: aev_kernel.aevs(MODEL.aev, atoms, moved), eager_calls=eager_calls)
    found = repeated(lambda: step(positions), 5)
    assert found.split.aev > 0.2 * found.seconds


def test_a_call_is_repeated_timed_and_profiled():
    calls: list[int] = []
    found = repeated(lambda: calls.append(len(calls)), 3)
    assert len(calls) == 7 and found.seconds > 0 and found.split.matmul == 0


def test_the_last_epoch_is_profiled_and_not_counted():
    heard: list[str] = []

    class Profiler:
        def start(self) -> None:
            heard.append("start")

        def stop(self) -> None:
            heard.append("stop")

    recorder = Recorder(1, 2, Profiler())  # type: ignore[arg-type]
    for seconds in (9.0, 1.0, 2.0):
        recorder.epoch({"seconds": seconds}, 100)
    assert heard == ["start"]
    with pytest.raises(KeyboardInterrupt):
        recorder.epoch({"seconds": 50.0}, 100)
    assert heard == ["start", "stop"] and recorder.seconds == [1, 2]


def test_rates_are_of_both_precisions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bench.rates._SIDE", 64)
    monkeypatch.setattr("bench.rates._STREAM_BYTES", 2**16)
    monkeypatch.setattr("bench.rates._SECONDS", 0.0)
    rates = all_rates(2, 8, 16, 4)
    assert set(rates) == {"float64", "float32"}
    assert all(rate > 1e5 for found in rates.values() for rate in found.values())
    assert {"matmul", "layer", "read", "copy", "exp_torch"} <= set(rates["float64"])


def test_the_best_of_three_calls_at_least():
    calls: list[int] = []
    assert best_seconds(lambda: calls.append(0), 0.0) > 0
    assert len(calls) == 4


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "bench.limit", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    for option in ("--data", "--epochs", "--threads", "--json"):
        assert option in done.stdout
