"""What `bench.scaling` compares with what, and what its clock sees in real runs of two ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import scaling
from bench.scaling import Case, Seen, cases, measure, run, seen
from pykinml_func.training.model_file import load_model

ROOT = Path(__file__).parents[2]


def test_communication_is_waiting_for_the_last_rank_and_the_addition_after_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scaling, "_WARM", 1)
    warm = [(0.0, 90.0)] * 2  # of the first epoch, which does not count
    first = {"seconds": [99.0, 10.0], "n_bytes": 8, "calls": [*warm, (100.0, 103.0), (105.0, 106.0)]}
    second = {"seconds": [99.0, 10.0], "n_bytes": 8, "calls": [*warm, (102.0, 103.0), (104.0, 107.0)]}
    found = seen([first, second], 2)
    assert found.seconds == 10 and found.n_bytes == 8
    assert found.communication == pytest.approx((2 + 2) / 10)
    assert found.waiting == pytest.approx((1 + 0.5) / 10)
    assert found.addition_seconds == pytest.approx((1 + 1.5) / 2)


def test_one_rank_talks_to_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scaling, "_WARM", 1)
    assert seen([{"seconds": [9.0, 1.0, 3.0, 2.0], "n_bytes": 0, "calls": []}], 4) == Seen(2, 0, 0, 0, 0)


def test_strong_scaling_shares_a_batch_and_weak_scaling_enlarges_it():
    found = cases([2], (500, 2000), "cpu")
    rivals = {case: case.rival for case in found if case.kind == "forces"}
    assert rivals[Case("forces", "strong", 2, 500)] == Case("forces", "one", 1, 500)
    assert rivals[Case("forces", "weak", 2, 1000)] == Case("forces", "one", 1, 500)
    assert rivals[Case("forces", "threads", 1, 500, 2)] == Case("forces", "one", 1, 500)
    assert not any(case.batch > 2000 for case in found), "there are no more structures than that"
    assert set(rivals.values()) <= set(found)
    assert {case.threads for case in cases([2, 4], (50,), "cuda")} == {1}


def test_runs_take_turns_and_are_compared_by_their_medians():
    one, two = Case("energies", "one", 1, 50), Case("energies", "weak", 2, 100)
    asked: list[Case] = []

    def do(case: Case) -> Seen:
        asked.append(case)
        return Seen([4.0, 5.0, 9.0][len(asked) // 2 - (case is two)] / case.ranks / 1.25 ** (case is two), 0.1, 0, 0, 8)

    rows = measure([one, two], 3, do)
    assert asked == [one, two] * 3
    assert (rows[0]["seconds"], rows[0]["least"], rows[0]["most"]) == (5, 4, 9)
    assert rows[1]["speed_up"] == pytest.approx(2.5) and rows[1]["efficiency"] == pytest.approx(1.25)
    assert rows[0]["speed_up"] == 1


@pytest.fixture(scope="module")
def measured(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One rank, then two: what was seen, and the models."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "_WARM", 1)
        for ranks in (1, 2):
            scratch = tmp_path_factory.mktemp(f"ranks_{ranks}")
            result = run(Case("energies", "strong", ranks, 500), shared / "data", scratch, 1, "cpu")
            found[ranks] = result, load_model(scratch / "run" / "model.safetensors")[1]
    return found


def test_a_real_run_of_two_ranks_is_seen(measured: Any):
    alone, together = measured[1][0], measured[2][0]
    assert alone.communication == 0 and alone.seconds > 0
    assert 0 < together.waiting <= together.communication < 1
    assert 0 < together.addition_seconds < together.seconds
    n_parameters = sum(leaf.numel() for leaf in measured[2][1].networks[0].weights)
    assert together.n_bytes == 8 * n_parameters


def test_the_clock_changes_nothing_that_is_trained(measured: Any):
    one, two = (measured[ranks][1].networks[0].weights for ranks in (1, 2))
    for own, other in zip(one, two, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


def test_a_run_that_fails_has_no_figures(shared: Path, tmp_path: Path):
    with pytest.raises(subprocess.CalledProcessError):
        run(Case("energies", "one", 1, 5000), shared / "data", tmp_path, 0 - scaling._WARM, "cpu")


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "bench.scaling", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    for option in ("--data", "--repeats", "--epochs", "--device", "--json"):
        assert option in done.stdout
