"""What is looked at before any benchmark begins."""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench.checks import check_command, check_data, check_file


def test_missing_data_are_named(tmp_path: Path):
    (tmp_path / "C5H5.db").touch()
    with pytest.raises(typer.BadParameter, match=r"without sample_tvt\.txt"):
        check_data(tmp_path)
    (tmp_path / "sample_tvt.txt").touch()
    assert check_data(tmp_path) == tmp_path


def test_figures_go_to_a_file_in_a_folder_that_is_there(tmp_path: Path):
    assert check_file(None) is None
    assert check_file(tmp_path / "figures.json") == tmp_path / "figures.json"
    for path in (tmp_path / "no" / "figures.json", tmp_path):
        with pytest.raises(typer.BadParameter, match=f"a file in a folder that is there, got {path};"):
            check_file(path)


def test_a_command_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bench.checks.PYKINML", str(tmp_path / "pykinml"))
    with pytest.raises(typer.BadParameter, match="pip install -e"):
        check_command()
    (tmp_path / "pykinml").touch()
    check_command()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, ["--data", "{data}", "--json", "no/figures.json"]) for name in ("accuracy", "compare", "limit")),
        *((name, ["--data", "."]) for name in ("accuracy", "compare", "limit")),
        ("startup", ["--data", "{data}", "--json", "no/figures.json"]),
        ("startup", ["--data", "."]),
        ("fidelities", ["--json", "no/figures.json"]),
        ("fidelities", ["--figure", "no/figure.png"]),
        ("sizes", ["--json", "no/figures.json"]),
    ],
)
def test_no_benchmark_begins_with_what_it_cannot_use(
    name: str, options: list[str], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    main = import_module(f"bench.{name}").main

    @wraps(main)
    def begun(**_: Any) -> None:
        raise AssertionError("work has begun")

    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(begun)
    done = CliRunner().invoke(app, [option.format(data=shared / "data") for option in options])
    assert done.exit_code == 2 and f"Invalid value for '{options[-2]}'" in done.output, done.output
