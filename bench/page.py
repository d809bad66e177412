"""What is shown of `bench.compare`'s results: a table on the terminal, and bench/README.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from bench.rows import ROWS, TOOLS, Figure, Row

Report = dict[str, Any]
_ROWS = {row.name: row for row in ROWS}
_PACKAGES = ("torch", "jax", "jaxlib", "fennol", "torchani", "pykinml", "aevmod", "numpy", "ase")


class Best(NamedTuple):
    """A tool's best variant in a row."""

    variant: str
    value: float


def best(row: Row, cell: dict[str, Any]) -> Best | None:
    """The variant of the best median; None where there is none."""
    found = [Best(name, variant["median"]) for name, variant in cell.get("variants", {}).items() if "median" in variant]
    choose = max if row.figure == "rate" else min
    return choose(found, key=lambda each: each.value) if found else None


def times_better(row: Row, own: Best | None, theirs: Best | None) -> float | None:
    """How many times better than a tool we are."""
    if own is None or theirs is None:
        return None
    return own.value / theirs.value if row.figure == "rate" else theirs.value / own.value


def verdicts(row: Row, cells: dict[str, Any]) -> Iterator[str]:
    """Each target of a row: what it is, and whether it is met."""
    own = best(row, cells["own"])
    for tool, target in row.targets.items():
        ratio = times_better(row, own, best(row, cells[tool]))
        reached = "not measured" if ratio is None else "met" if ratio >= target else "missed"
        yield f"{target:g}x {TOOLS[tool]}: {reached}"
    if row.limit is not None:
        reached = "not measured" if own is None else "met" if own.value <= row.limit else "missed"
        yield f"at most {shown(row.figure, row.limit)}: {reached}"


def shown(figure: Figure, value: float) -> str:
    """A value with its unit."""
    if figure == "rate":
        return f"{value:,.0f}/s"
    if figure == "ratio":
        return f"{value:.3g}x"
    if figure == "peak_bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value:.3g} s"


def lines(report: Report) -> Iterator[list[str]]:
    """Each row of the table: its title, the tools' figures with how many times better we are, the targets."""
    for measured in report["rows"]:
        row, cells = _ROWS[measured["name"]], measured["cells"]
        own = best(row, cells["own"])
        texts = [_cell(row, own, tool, cells[tool]) for tool in TOOLS]
        yield [row.title, *texts, "; ".join(verdicts(row, cells))]


def _cell(row: Row, own: Best | None, tool: str, cell: dict[str, Any]) -> str:
    found = best(row, cell)
    if found is None:
        return "-"
    ratio = None if tool == "own" else times_better(row, own, found)
    return shown(row.figure, found.value) + ("" if ratio is None else f" ({ratio:.3g}x)")


def table(report: Report) -> Table:
    """For the terminal."""
    made = Table("C5H5", *TOOLS.values(), "to reach", caption="in brackets: how many times better pykinml_func is")
    for cells in lines(report):
        made.add_row(*cells)
    return made


_HEAD = """# Side by side with PyKinML, TorchANI and FeNNol

Written by `python -m bench.compare --data DIR --json bench/results/NAME.json` from the files in `bench/results`; DIR
holds PyKinML's example data. Every tool works on C5H5 (2112 structures; 2000 train in batches of 50, then 48 validate:
one epoch) with AEVs of 224 numbers, networks 224-48-24-12-1 for C and H, Gaussians, no biases, float64 unless a row
says otherwise. Each runs in an environment and a process of its own; they warm up, then are asked in turn, one at a
time. A figure is the median, in brackets how many times better pykinml_func is; of several variants the best stands in
the table, all of them are below. Before it is timed TorchANI must give our AEVs (up to its factors 0.25 and 2),
energies and forces, and PyKinML our energies. FeNNol has its own rule for shifts, and its own first weights.
"""


def write_page(results: Path) -> str:
    """The text of bench/README.md, from every result of `bench.compare` in a folder."""
    parts = [_HEAD]
    for path in sorted(results.glob("compare*.json")):
        parts += _section(path.name, json.loads(path.read_text()))
    return "\n".join(parts)


def _section(name: str, report: Report) -> Iterator[str]:
    yield f"## {report['cpu']}, {report['threads']} threads\n"
    yield f"[`results/{name}`](results/{name}), {report['repeats']} repeats, by `{report['command']}`\n"
    header = ["C5H5", *TOOLS.values(), "to reach"]
    yield from (f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines(report)])
    yield "\nEvery variant (least to largest), and why there is none:\n"
    for measured in report["rows"]:
        yield from _footnotes(_ROWS[measured["name"]], measured["cells"])
    yield "\nVersions:\n"
    for tool, versions in report["versions"].items():
        listed = ", ".join(f"{package} {versions[package]}" for package in _PACKAGES if package in versions)
        yield f"- {TOOLS[tool]}: {listed}"
    yield ""


def _footnotes(row: Row, cells: dict[str, Any]) -> Iterator[str]:
    yield f"- **{row.title}** (`--only {row.name}`){'. ' + row.note if row.note else ''}"
    for tool, cell in cells.items():
        if "unavailable" in cell:
            yield f"  - {TOOLS[tool]}: none, {cell['unavailable']}"
        else:
            yield f"  - {TOOLS[tool]}: " + "; ".join(
                f"{name} {_spread(row, variant)}" for name, variant in cell["variants"].items()
            )


def _spread(row: Row, variant: dict[str, Any]) -> str:
    if "median" not in variant:
        return f"none ({variant['unavailable']})"
    least, largest = (shown(row.figure, variant[end]) for end in ("min", "max"))
    first = [
        f", first {name.split('_')[1]} {value:.3g} s" for name, value in variant.items() if name.startswith("first_")
    ]
    return f"{shown(row.figure, variant['median'])} ({least} to {largest}{''.join(first)})"
