"""What `bench.grouped` holds out, what it tells of groups, and that the page's tables are its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bench import grouped
from bench.grouped import BUNDLED, PYKINML, RANDOM, Job, jobs_of, random_errors, read, run, spread, table_of_names

ROOT = Path(__file__).parents[2]
FOLDERS = {BUNDLED: ROOT / "examples/data"}
BRIEF = {"epochs": 1, "n_radial": 4, "n_angular_radial": 2, "n_angular": 2, "neurons": (4, 1)}
BRIEF |= {"activations": ("gaussian", "identity"), "compile": "off", "warmup": 0}


@pytest.mark.parametrize("job", [Job(BUNDLED, RANDOM, 0), Job(BUNDLED, "name", 1), Job(BUNDLED, "x", 0, "co_min")])
def test_errors_of_groups_are_those_of_the_test_set(job: Job) -> None:
    row = run(job, FOLDERS, **BRIEF)
    groups = row["groups"].values()
    sizes = [size for size, _, _ in groups]
    assert sum(sizes) == row["structures"][2]
    assert np.average([energy for _, energy, _ in groups], weights=sizes) == pytest.approx(row["energy_mae"])
    forces = [force for _, _, force in groups]
    assert 0.999 * min(forces) < row["force_mae"] < 1.001 * max(forces)
    if job.held_out:
        assert row["structures"] == [470, 60, 10] and list(row["groups"]) == ["co_min"]
        assert row["groups"]["co_min"][2] == pytest.approx(row["force_mae"])
    elif job.way == "name":
        every = dict(zip(*np.unique(read(str(FOLDERS[BUNDLED] / "*.db")).names, return_counts=True), strict=True))
        assert {name: size for name, (size, _, _) in row["groups"].items()} == {n: every[n] for n in row["groups"]}
    else:
        assert row["structures"] == [480, 60, 60] and len(row["groups"]) > 5


def test_every_name_is_held_out_once_and_every_split_has_all_seeds() -> None:
    work = jobs_of(FOLDERS, 2)
    assert len(set(work)) == len(work) == 2 * 4 + 16
    assert {job.data for job in work} == {BUNDLED}
    assert sum(job.held_out == "ts_h2co_hcoh" for job in work) == 1
    assert Job(PYKINML, "id:100", 1) in jobs_of({**FOLDERS, PYKINML: ROOT}, 2)


def row_of(way: str, seed: int, energy: float, held_out: str = "", **groups: list[float]) -> dict[str, Any]:
    common = {"data": BUNDLED, "structures": [470, 60, 10], "energy_mae": energy, "force_mae": 2 * energy}
    return {**Job(BUNDLED, way, seed, held_out)._asdict(), **common, "groups": groups}


ROWS = [
    row_of(RANDOM, 0, 1.0, a=[1, 1.0, 4.0], b=[9, 1.0, 2.0]),
    row_of(RANDOM, 1, 1.0, a=[3, 2.0, 8.0]),
    row_of("held out", 0, 5.0, "a"),
    row_of("held out", 0, 9.0, "b"),
]


def test_random_errors_are_weighed_by_structures() -> None:
    assert random_errors(ROWS, "a") == (1.75, 7.0, 4)
    assert random_errors(ROWS, "b") == (1.0, 2.0, 9)
    energy, force, number = random_errors(ROWS, "c")
    assert np.isnan([energy, force]).all() and number == 0


def test_the_worst_name_comes_first() -> None:
    columns = [list(column.cells) for column in table_of_names(ROWS).columns]
    assert columns == [
        ["b", "a"],
        ["10"] * 2,
        ["9.00", "5.00"],
        ["18.00", "10.00"],
        ["1.00", "1.75"],
        ["2.00", "7.00"],
        ["9", "4"],
    ]
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"


def test_folders_without_data_are_named(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(grouped.main)
    found = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["--data", str(tmp_path)])
    assert found.exit_code == 2 and "--data" in found.output
    found = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["--pykinml", str(tmp_path)])
    assert found.exit_code == 2 and "C5H5.db" in found.output


def test_the_tables_of_the_page_are_the_figures() -> None:
    report = json.loads((ROOT / "bench/results/grouped.json").read_text())
    page = (ROOT / "docs/splits.md").read_text(encoding="utf-8")
    lines = [re.split(r"(?<!\\)\|", line.strip("|")) for line in page.splitlines() if line.startswith("|")]
    there = {tuple(cell.strip().strip("`").replace("\\|", "|") for cell in line) for line in lines}
    assert report["command"] in page
    for table in (grouped.table_of_ways(report["rows"]), grouped.table_of_names(report["rows"])):
        lines_told = set(zip(*(map(str, column.cells) for column in table.columns), strict=True))
        assert lines_told and lines_told <= there
