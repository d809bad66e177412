"""How fast are we beside PyKinML, TorchANI and FeNNol? One table, every tool measured in the same run.

    python -m bench.compare --data DIR [--only ROW ...] [--json bench/results/compare.json]

DIR holds PyKinML's example data (`C5H5.db`, `sample_tvt.txt`). Each tool runs in a process and an environment of its
own (`bench/peers`); for each row every tool warms up, then they are asked in turn, one at a time, as often as
`--repeats` says. Medians, least and largest go to the results, with versions and hardware; with `--json`,
`bench/README.md` is written anew from them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from bench.checks import ExampleData, check_file
from bench.machine import write_report
from bench.page import table, write_page
from bench.peers.environments import PEERS, environment
from bench.peers.problem import write_problem
from bench.peers.process import Settings, Worker
from bench.peers.protocol import Answer
from bench.rows import ROWS, Ask, Row, find
from pykinml_func.errors import PyKinMLError

PAGE = Path(__file__).parent / "README.md"
_SLOW_REPEATS = 2


class Workers:
    """The processes: one a tool and precision, started when first asked."""

    def __init__(self, pythons: dict[str, Path], settings: Settings) -> None:
        """pythons: of each tool's environment."""
        self._pythons, self._settings = pythons, settings
        self._running: dict[tuple[str, str], Worker] = {}

    def ask(self, tool: str, request: dict[str, Any], dtype: str) -> Answer:
        """The lasting process's answer."""
        worker = self._running.get((tool, dtype))
        if worker is None or not worker.alive:
            worker = self._running[tool, dtype] = self._start(tool, dtype)
        return worker.ask(request)

    def ask_anew(self, tool: str, request: dict[str, Any], dtype: str) -> Answer:
        """The answer of a process that does nothing else."""
        with self._start(tool, dtype) as worker:
            return worker.ask(request)

    def _start(self, tool: str, dtype: str) -> Worker:
        return Worker(tool, self._pythons[tool], self._settings, dtype)

    def versions(self) -> dict[str, dict[str, str]]:
        """Packages of every tool's environment."""
        return {tool: self.ask(tool, {"task": "versions"}, "float64").get("versions", {}) for tool in self._pythons}

    def close(self) -> None:
        """End them all; what is asked again starts again."""
        for worker in self._running.values():
            worker.close()
        self._running.clear()


def measure(row: Row, workers: Workers, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """One row: warm-up, then every variant of every tool in turn."""
    asks = [(tool, ask) for tool, given in row.asks.items() if not isinstance(given, str) for ask in given]
    if row.fresh:
        workers.close()  # what the idle ones hold, gigabytes of Jacobians, would be missing
    firsts = {(tool, ask.variant): _warm_up(row, tool, ask, workers) for tool, ask in asks}
    answers: dict[tuple[str, str], list[Answer]] = {key: [] for key in firsts}
    for number in range(repeats):
        for tool, ask in asks:
            key = (tool, ask.variant)
            if (ask.slow and number >= _SLOW_REPEATS) or _refusal([*firsts[key], *answers[key]]):
                continue
            answer = (workers.ask_anew if row.fresh else workers.ask)(tool, ask.request, ask.dtype)
            answers[key].append(answer)
            say(f"{row.name}, {tool}, {ask.variant}: {answer.get(row.figure, answer.get('unavailable'))}")
    cells: dict[str, Any] = {}
    for tool, given in row.asks.items():
        if isinstance(given, str):
            cells[tool] = {"unavailable": given}
            continue
        variants = {ask.variant: summary(row, firsts[tool, ask.variant], answers[tool, ask.variant]) for ask in given}
        cells[tool] = {"variants": variants}
    return {"name": row.name, "cells": cells}


def _warm_up(row: Row, tool: str, ask: Ask, workers: Workers) -> list[Answer]:
    """The first answer, which is not counted, where there is one."""
    if row.fresh:
        return [] if ask.before is None else [workers.ask_anew(tool, ask.before, ask.dtype)]
    return [] if ask.slow else [workers.ask(tool, ask.request, ask.dtype)]


def _refusal(answers: Iterable[Answer]) -> str | None:
    return next((answer["unavailable"] for answer in answers if "unavailable" in answer), None)


def summary(row: Row, firsts: list[Answer], answers: list[Answer]) -> dict[str, Any]:
    """What is stored of one variant: median, least, largest; or why there is none."""
    refusal = _refusal([*firsts, *answers])
    if refusal is not None:
        return {"unavailable": refusal}
    values = [float(answer[row.figure]) for answer in answers]
    firsts = [*firsts, *answers]  # of what was not warmed up, the first counts as such
    extra = {name: value for name, value in firsts[0].items() if name.startswith("first_")}
    spread = {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": len(values)}
    return {**spread, **extra}


def run(
    data: Path, rows: tuple[Row, ...], repeats: int, threads: int, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure rows. Raises PyKinMLError before any work where a tool's environment cannot be made."""
    needed = {tool for row in rows for tool, given in row.asks.items() if not isinstance(given, str)}
    pythons = {"own": Path(sys.executable)} | {tool: environment(tool, say) for tool in PEERS if tool in needed}
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        workers = Workers(pythons, Settings(data.resolve(), scratch, write_problem(data, scratch), threads, device))
        try:
            measured = [measure(row, workers, repeats, say) for row in rows]
            versions = workers.versions()
        finally:
            workers.close()
    return {"device": device, "threads": threads, "repeats": repeats, "rows": measured, "versions": versions}


def main(
    data: ExampleData,
    only: Annotated[
        list[str] | None, typer.Option(help=f"a row, once for each: {', '.join(row.name for row in ROWS)}")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="write the figures here, and bench/README.md anew", callback=check_file),
    ] = None,
    repeats: Annotated[int, typer.Option(help="measurements of each", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads that every tool is given", min=1)] = 2,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda for us and TorchANI (FeNNol takes what its JAX finds)")
    ] = "cpu",
) -> None:
    """Measure every row side by side with the other tools, and print a table."""
    say = partial(Console(stderr=True).print, highlight=False, soft_wrap=True)
    try:
        rows = find(only or [])
        if device != "cpu" and not torch.cuda.is_available():
            raise PyKinMLError(f"--device must be one that torch can use here, got {device}; leave it out")
        report = run(data, rows, repeats, threads, device, say)
    except PyKinMLError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    Console(width=140).print(table(report))
    options = [f"--repeats {repeats} --threads {threads} --device {device}", *(f"--only {name}" for name in only or [])]
    write_report(json_file, f"python -m bench.compare --data DIR {' '.join(options)}", report)
    if json_file is not None:
        PAGE.write_text(write_page(json_file.parent))


if __name__ == "__main__":
    typer.run(main)
