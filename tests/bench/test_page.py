"""What is shown of stored results: which variant stands in the table, ratios, targets, the page."""

import json
from pathlib import Path

import pytest

from bench.page import best, lines, shown, times_better, verdicts, write_page
from bench.rows import ROWS, TOOLS, Row, find
from pykinml_func.errors import PyKinMLError

REASON = "has no such thing"


def figures(median: float) -> dict[str, float]:
    return {"median": median, "min": 0.9 * median, "max": 1.1 * median, "repeats": 5}


def cell(**variants: float | str) -> dict[str, object]:
    made = {name: {"unavailable": v} if isinstance(v, str) else figures(v) for name, v in variants.items()}
    return {"variants": made}


def cells(**tools: dict[str, object]) -> dict[str, object]:
    return {tool: tools.get(tool, {"unavailable": REASON}) for tool in TOOLS}


@pytest.fixture
def one() -> Row:
    return find(["one_structure"])[0]


@pytest.fixture
def many() -> Row:
    return find(["many_structures"])[0]


def test_the_least_time_and_the_largest_rate_are_best(one: Row, many: Row):
    assert best(one, cell(eager=3e-3, script=2e-3)).variant == "script"
    assert best(many, cell(eager=3000.0, script=2000.0)).variant == "eager"


def test_what_failed_does_not_compete(many: Row):
    assert best(many, cell(eager=3000.0, script="an error")).value == 3000
    assert best(many, cell(eager="an error")) is None
    assert best(many, {"unavailable": REASON}) is None


def test_a_ratio_above_one_is_in_our_favour(one: Row, many: Row):
    assert times_better(one, best(one, cell(a=1e-3)), best(one, cell(a=4e-3))) == pytest.approx(4)
    assert times_better(many, best(many, cell(a=6000.0)), best(many, cell(a=2000.0))) == pytest.approx(3)
    assert times_better(many, None, best(many, cell(a=2000.0))) is None


def test_targets_are_met_missed_or_not_measured(one: Row):
    found = cells(own=cell(a=0.4e-3), pykinml=cell(a=20e-3), torchani=cell(a=1.5e-3), fennol=cell(a="an error"))
    assert list(verdicts(one, found)) == [
        "40x PyKinML: met",
        "4x TorchANI: missed",
        "2x FeNNol: not measured",
        "at most 0.5 ms: met",
    ]
    assert list(verdicts(one, cells()))[-1] == "at most 0.5 ms: not measured"


@pytest.mark.parametrize(
    ("figure", "value", "text"),
    [
        ("seconds", 0.00042, "0.42 ms"),
        ("seconds", 78.4, "78.4 s"),
        ("rate", 12345.6, "12,346/s"),
        ("ratio", 2.5, "2.5x"),
        ("peak_bytes", 9.9e9, "9.90 GB"),
    ],
)
def test_figures_carry_their_unit(figure: str, value: float, text: str):
    assert shown(figure, value) == text


def report(rows: list[dict[str, object]]) -> dict[str, object]:
    versions = {"own": {"torch": "2.13.0"}, "fennol": {"jax": "0.10.2", "zipp": "4"}}
    run = {"command": "python -m bench.compare --data DIR", "cpu": "a processor", "threads": 2, "repeats": 5}
    return {**run, "rows": rows, "versions": versions}


def test_the_page_holds_every_result_with_reasons_and_versions(tmp_path: Path):
    found = cells(own=cell(native=0.05), pykinml=cell(aevmod=4.0), torchani=cell(eager=0.6, compile="an error"))
    rows = [{"name": "aevs", "cells": found}, {"name": "cold_start", "cells": cells(own=cell(predict=2.0))}]
    (tmp_path / "compare.json").write_text(json.dumps(report(rows)))
    (tmp_path / "compare_cuda.json").write_text(json.dumps(report(rows[:1])))
    (tmp_path / "other.json").write_text("{}")
    page = write_page(tmp_path)
    assert (
        "| AEVs of 2112 structures | 50 ms | 4 s (80x) | 0.6 s (12x) | - | 40x PyKinML: met; 10x TorchANI: met |"
        in page
    )
    assert page.count("AEVs of 2112 structures |") == 2
    assert "TorchANI: eager 0.6 s (0.54 s to 0.66 s); compile none (an error)" in page
    assert f"FeNNol: none, {REASON}" in page
    assert "- FeNNol: jax 0.10.2\n" in page
    assert "`python -m bench.compare --data DIR`" in page


def test_every_row_names_each_tool_and_can_be_shown_unmeasured():
    for row in ROWS:
        assert set(row.asks) == set(TOOLS)
        assert set(row.targets) < set(TOOLS)
        names = [ask.variant for asks in row.asks.values() if not isinstance(asks, str) for ask in asks]
        assert len(names) == len(
            {(tool, a.variant) for tool, g in row.asks.items() if not isinstance(g, str) for a in g}
        )
    empty = report([{"name": row.name, "cells": cells()} for row in ROWS])
    assert [line[0] for line in lines(empty)] == [row.title for row in ROWS]


def test_an_unknown_row_is_refused_with_the_names():
    with pytest.raises(PyKinMLError, match=r"aevs, prepare, .*, got nothing"):
        find(["nothing"])
