"""The harness of the side-by-side benchmark, with workers that are made up: order, warm-up, refusals, summaries."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import compare
from bench.compare import measure, summary
from bench.peers import process
from bench.peers.environments import PEERS, environment, requirements
from bench.peers.process import Settings, Worker, worker_variables
from bench.rows import TOOLS, Ask, Row
from pykinml_func.errors import PyKinMLError

ROOT = Path(__file__).parents[2]
ROW = Row(
    "aevs",
    "made up",
    "seconds",
    {
        "own": (Ask("fast", {"task": "a"}), Ask("failing", {"task": "b"})),
        "pykinml": (Ask("long", {"task": "c"}, slow=True),),
        "torchani": "has no part",
    },
)


class FakeWorkers:
    """Answers 1, 2, 3, ... seconds."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, tool: str, request: dict[str, Any], dtype: str) -> dict[str, Any]:  # noqa: ARG002
        self.asked.append(request["task"])
        if request["task"] == "b":
            return {"unavailable": "ValueError: no"}
        return {"seconds": float(len(self.asked)), "first_call_seconds": float(len(self.asked))}

    def ask_anew(self, tool: str, request: dict[str, Any], dtype: str) -> dict[str, Any]:
        self.asked.append("new")
        return self.ask(tool, request, dtype)

    def close(self) -> None:
        self.asked.append("closed")


@pytest.fixture
def workers() -> FakeWorkers:
    return FakeWorkers()


def run(workers: FakeWorkers, repeats: int) -> dict[str, Any]:
    return measure(ROW, workers, repeats, lambda _: None)  # type: ignore[arg-type]


def test_tools_warm_up_and_are_asked_in_turn(workers: FakeWorkers):
    run(workers, 3)
    assert "".join(workers.asked) == "ab" + "ac" + "ac" + "a"


def test_processes_of_their_own_are_prepared_by_others_while_none_idles(workers: FakeWorkers):
    ask = Ask("fast", {"task": "a"}, before={"task": "p"})
    measure(ROW._replace(fresh=True, asks={"own": (ask,)}), workers, 2, lambda _: None)  # type: ignore[arg-type]
    assert workers.asked == ["closed", "new", "p", "new", "a", "new", "a"]


def test_what_is_stored(workers: FakeWorkers):
    cells = run(workers, 3)["cells"]
    fast = {"median": 5.0, "min": 3.0, "max": 7.0, "repeats": 3, "first_call_seconds": 1.0}
    assert cells["own"]["variants"] == {"fast": fast, "failing": {"unavailable": "ValueError: no"}}
    assert cells["pykinml"]["variants"]["long"]["repeats"] == 2
    assert cells["torchani"] == {"unavailable": "has no part"}
    json.dumps(cells)


def test_a_refusal_in_the_middle_leaves_no_figure():
    found = summary(ROW, [{"seconds": 1.0}], [{"seconds": 1.0}, {"unavailable": "gone"}])
    assert found == {"unavailable": "gone"}


def test_an_unknown_row_ends_with_code_2_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(compare, "run", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(compare.typer.Exit) as ended:
        compare.main(tmp_path, only=["nothing"])
    assert ended.value.exit_code == 2 and "got nothing" in capsys.readouterr().err


def test_figures_are_stored_and_the_page_is_written_anew_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = {tool: {"unavailable": "not asked"} for tool in TOOLS}
    report = {"device": "cpu", "threads": 1, "repeats": 2, "rows": [{"name": "aevs", "cells": cells}], "versions": {}}
    monkeypatch.setattr(compare, "run", lambda *_: report)
    monkeypatch.setattr(compare, "PAGE", tmp_path / "README.md")
    compare.main(tmp_path, only=["aevs"], json_file=tmp_path / "compare.json", repeats=2, threads=1)
    stored = json.loads((tmp_path / "compare.json").read_text())
    assert {name: stored[name] for name in report} == report
    options = "--data DIR --repeats 2 --threads 1 --device cpu --only aevs --json compare.json"
    assert stored["command"] == f"python -m bench.compare {options}"
    assert stored["command"] in (tmp_path / "README.md").read_text()


def test_workers_are_told_what_they_need_and_import_from_here(tmp_path: Path):
    told = json.loads(Settings(tmp_path, tmp_path, tmp_path / "problem.npz", 3, "cpu").as_json("float32", limit=5.0))
    assert told["problem"] == str(tmp_path / "problem.npz") and told["data"] == told["scratch"] == str(tmp_path)
    assert (told["threads"], told["device"], told["dtype"], told["limit"]) == (3, "cpu", "float32", 5.0)
    variables = worker_variables("pykinml", 3)
    assert variables["OMP_NUM_THREADS"] == "3" and "PATH" in variables
    assert variables["PYTHONPATH"].startswith(str(ROOT)) and "stand_ins" in variables["PYTHONPATH"]
    assert worker_variables("torchani", 3)["PYTHONPATH"] == str(ROOT)


def test_torch_is_pinned_first_where_it_is_asked_for():
    for name in PEERS:
        lines = requirements(name).read_text().splitlines()
        assert all("==" in line for line in lines)
        torch = [line for line in lines if line.startswith("torch==")]
        assert torch in ([], ["torch==2.13.0"])
        assert not torch or lines[0] == torch[0]


def test_an_environment_that_cannot_be_made_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bench.peers.environments._steps", lambda *_: [[sys.executable, "-c", "import nowhere"]])
    with pytest.raises(PyKinMLError, match=r"(?s)torchani cannot be made.*No module named 'nowhere'"):
        environment("torchani", lambda _: None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(parents=True); p.touch()"
    monkeypatch.setattr(
        "bench.peers.environments._steps", lambda *given: [[sys.executable, "-c", script, str(given[2])]]
    )
    said: list[str] = []
    assert environment("fennol", said.append, tmp_path) == environment("fennol", said.append, tmp_path)
    assert len(said) == 1


WORKER = """
from bench.peers.protocol import serve
def loud(text):
    print("a library prints")
    return {"said": text}
def start():
    return {"loud": loud, "fail": lambda: 1 / 0}
serve(start)
"""


def test_peak_memory_is_that_of_the_process_alone():
    code = "from bench.peers.protocol import peak_bytes; print(peak_bytes())"
    held = np.ones(50_000_000)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert 5e6 < int(done.stdout) < 1e8 < held.nbytes


def _in_place_of(start: Any, command: list[str], _: list[str], **kwargs: Any) -> Any:
    return start(command, **kwargs)


def test_a_worker_answers_errors_too_and_prints_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "fake_worker.py").write_text(WORKER)
    run_it = "import runpy, sys; runpy.run_path(sys.argv[1])"
    command = [sys.executable, "-c", run_it, str(tmp_path / "fake_worker.py")]
    monkeypatch.setattr(process.subprocess, "Popen", partial(_in_place_of, subprocess.Popen, command))
    with Worker("own", Path(sys.executable), Settings(tmp_path, tmp_path, tmp_path, 1, "cpu"), "float64") as worker:
        assert worker.ask({"task": "loud", "text": "ready"})["said"] == "ready"
        assert worker.ask({"task": "fail"})["unavailable"].startswith("ZeroDivisionError")
        assert worker.ask({"task": "versions"})["peak_bytes"] > 1e6
    assert not worker.alive
    assert worker.ask({"task": "loud"})["unavailable"] == "its process had ended"
    assert "a library prints" in (tmp_path / "own_float64.log").read_text()
