"""What a training run prints: the data, the split, the networks, its progress, the errors. eV inside, kcal/mol here."""

from __future__ import annotations

import statistics
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from pykinml_func.data.elements import formulas
from pykinml_func.data.prepared import Advance, PreparedSet
from pykinml_func.report.sections import (
    clock,
    errors_table,
    is_milestone,
    label_counts,
    networks_table,
    plain_header,
    plain_line,
    progress_line,
    result_facts,
    seconds_text,
    self_energy_facts,
    split_facts,
    training_facts,
)
from pykinml_func.training.reporter import RunResult, Setup

_FEATURE_NAMES = {"aevs": "AEVs", "jacobians": "AEV Jacobians"}
_MANY_ROWS = 100_000
"""Structures from which reading them takes long enough to be told in a line of its own."""

_LABEL_WIDTH = 12
_REFRESH_SECONDS = 0.1
_RECENT_EPOCHS = 20
"""Epochs whose median time tells how long the rest takes."""


class ConsoleReporter:
    """Prints a run as it goes and draws its figures: a `training.reporter.Reporter`.

    Bars move on a terminal; elsewhere lines are printed now and then, without control characters. As a context manager
    it ends a bar that an exception left, so that an error message starts on a line of its own.
    """

    def __init__(self, console: Console | None = None) -> None:
        """`console` defaults to the standard output, where FORCE_COLOR brings colours to a pipe but no moving bars."""
        self.console = console or Console(force_interactive=None if sys.stdout.isatty() else False)
        self._bar: _Bar | None = None
        self._feature_seconds: dict[str, float] = {}
        self._epoch_seconds: list[float] = []
        self._epochs = 0
        self._fidelities: tuple[int, ...] = ()
        self._compiled = False

    def __enter__(self) -> Self:
        """The reporter itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End a bar that is still there."""
        self._end_bar()

    def featurizing(self, name: str, total: int) -> Advance:
        """Show the progress of reading structures, or of computing their AEVs or Jacobians; returns what hears how many
        more are done. total: structures, as far as they can be counted beforehand.
        """
        label, work = _FEATURE_NAMES.get(name, "Read"), f"Reading {total}"
        if name in _FEATURE_NAMES:
            work = f"Computing {label} of {total}"
        of_total = "/{task.total:.0f}" if total else ""
        columns = (TextColumn(f"{label} {{task.completed:.0f}}{of_total} structures"), BarColumn(None))
        bar = self._start_bar(_Bar(self.console, columns, total or None, transient=True))
        if bar is None and (name in _FEATURE_NAMES or total >= _MANY_ROWS):
            self._print(Text(f"{work} structures ..."))
        started, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._feature_seconds[name] = time.perf_counter() - started
            if bar is not None:
                bar.move_to(done)
                if done >= total > 0:
                    self._end_bar()

        return advance

    def prepared(self, prepared: PreparedSet, seconds: float) -> None:
        """Print what was read, and what its AEVs took."""
        self._end_bar()
        self._heading("Data")
        structures = prepared.structures
        for source in prepared.sources:
            self._fact("read", source)
        counts = formulas(structures)
        self._fact("formulas", ", ".join(f"{formula} ({count})" for formula, count in counts.items()))
        self._fact("structures", f"{structures.n_structures} with {len(structures.numbers)} atoms")
        for level, energies, forces in label_counts(structures):
            self._fact("fidelity", f"level {level}: {energies} structures with energies, {forces} with forces")
        self._fact("elements", ", ".join(prepared.aev.elements))
        self._fact("AEVs", f"length {prepared.aev.length}, {prepared.backend}, {prepared.precision}")
        for name, label in _FEATURE_NAMES.items():
            if name in self._feature_seconds:
                self._fact("", f"{label} computed in {seconds_text(self._feature_seconds[name])}")
            elif (prepared.path / f"{name}.npy").exists():
                self._fact("", f"{label} on disk already")
        self._fact("took", f"{seconds_text(seconds)} in all")
        self._path(f"{'set':{_LABEL_WIDTH}}{'reused' if prepared.reused else 'made'}: ", prepared.path)

    def ready(self, setup: Setup) -> None:
        """Print the split, the self energies, the networks and how they are trained; start the bar of the epochs."""
        self._heading("Training")
        for label, value in (*split_facts(setup), *self_energy_facts(setup), *training_facts(setup)):
            self._fact(label, value)
        self._heading("Networks")
        self._print(networks_table(setup))
        self._epochs, self._fidelities = setup.config.training.epochs, setup.config.model.fidelities
        self._compiled = setup.compiled
        columns = (
            TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(None),
            TextColumn("{task.fields[note]}"),
        )
        if self._start_bar(_Bar(self.console, columns, self._epochs)) is None:
            for line in plain_header(setup.config.training.forces):
                self._print(Text(line))

    def epoch(self, record: dict[str, float], epochs: int) -> None:
        """Move the bar, or print a line if it is time for one."""
        self._epoch_seconds.append(record["seconds"])
        done = int(record["epoch"])
        left = (epochs - done) * statistics.median_low(self._epoch_seconds[-_RECENT_EPOCHS:])
        if self._bar is not None:
            note = f"learning rate {record['learning_rate']:.3g}, {clock(left)} left"
            self._bar.move_to(done, note, progress_line(record))
        elif is_milestone(done, epochs):
            self._print(Text(plain_line(record, epochs, left)))

    def finished(self, result: RunResult) -> None:
        """Print the errors, draw the figures, and tell where the model is, last."""
        self._end_bar()
        self._heading("Errors")
        self._print(errors_table(result, self._fidelities))
        self._print(Text())
        for label, value in result_facts(result, self._epochs, self._fidelities, self._compiled):
            self._fact(label, value)
        try:
            for path in _draw(result):
                self._path(f"{'figure':{_LABEL_WIDTH}}", path)
        finally:
            self._path(f"{'run':{_LABEL_WIDTH}}", result.directory)
            self._path("MODEL: ", result.directory / "model.safetensors")

    def _heading(self, text: str) -> None:
        self._print(Text())
        self._print(Text(text, style="bold"))

    def _fact(self, label: str, value: str) -> None:
        width = max(self.console.width - _LABEL_WIDTH, 20)
        for line in textwrap.wrap(value, width, break_on_hyphens=False):
            self._print(Text(f"{label:{_LABEL_WIDTH}}{line}"))
            label = ""

    def _path(self, label: str, path: Path) -> None:
        """A path in one line, however narrow the terminal, so that it can be copied."""
        self.console.print(Text(f"{label}{path}"), soft_wrap=True)

    def _print(self, renderable: RenderableType) -> None:
        self.console.print(renderable)

    def _start_bar(self, bar: _Bar) -> _Bar | None:
        """Show `bar`, if the output is a terminal."""
        self._end_bar()
        if self.console.is_interactive:
            self._bar = bar
            bar.start()
        return self._bar

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Bar(Progress):
    """A bar, and perhaps a line below it, drawn only when it moves.

    No thread, no redirected output, no hidden cursor, and a line below left free: an exception that nobody tells it of
    leaves a usable terminal.
    """

    def __init__(
        self, console: Console, columns: Sequence[TextColumn | BarColumn], total: int | None, transient: bool = False
    ) -> None:
        self.line = ""
        self._drawn = 0.0
        super().__init__(
            *columns,
            console=console,
            auto_refresh=False,
            transient=transient,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self._task = self.add_task("", total=total, note="")

    def start(self) -> None:
        """Show the bar; the cursor stays."""
        super().start()
        self.console.show_cursor(True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, the line, and the free line where the cursor waits."""
        yield from super().get_renderables()
        if self.line:
            yield Text(self.line)
        yield Text()

    def move_to(self, done: int, note: str = "", line: str = "") -> None:
        """Set how much is done; drawn at most every tenth of a second, and at the end."""
        self.line = line
        self.update(self._task, completed=done, note=note)
        if self.finished or time.perf_counter() - self._drawn > _REFRESH_SECONDS:
            self.refresh()
            self._drawn = time.perf_counter()


def _draw(result: RunResult) -> list[Path]:
    """Draw the figures of a run into its directory; matplotlib is loaded here, when the training is over."""
    from pykinml_func.report.plots import learning_curve, parity_figure

    paths = [result.directory / "learning_curve.png", result.directory / "parity.png"]
    learning_curve(paths[0], result.history)
    parity_figure(paths[1], result.predictions)
    return paths
