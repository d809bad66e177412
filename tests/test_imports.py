"""What a command loads: a library that it does not need is time that a user waits for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_calls import SMALL

from pykinml_func.data.formats.database import read_databases, write_database
from pykinml_func.types import Structures

_FIGURES_AND_FILES = {"matplotlib", "h5py", "ase.db", "tomlkit"}
_COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
_REPORT = """
import sys
from pykinml_func.cli import main
sys.argv[0] = "pykinml"
try:
    main()
finally:
    print("LOADED", *sys.modules)
"""


def loaded(*arguments: object, code: str = _REPORT) -> set[str]:
    """The modules that a process has when the command is done."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.partition("LOADED")[2].split())


@pytest.fixture(scope="module")
def folder(make_structures: Callable[..., Structures], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database, a structure of it, and a model."""
    root = tmp_path_factory.mktemp("startup")
    write_database(root / "C2H2.db", make_structures(["C2H2"] * 9, seed=3), {1: "made up"})
    structures = read_databases([root / "C2H2.db"])
    lines = [f"{s} {x} {y} {z}" for s, (x, y, z) in zip("CCHH", structures.positions[:4], strict=True)]
    (root / "one.xyz").write_text("\n".join(["4", "", *lines, ""]))
    loaded(*_training(root), "--output", root / "run")
    return root


def _training(root: Path) -> list[object]:
    options = ["--split", "6,3,0", "--epochs", 1, "--prepared", root / "prepared", *SMALL]
    return ["train", "--input", root / "C2H2.db", *options]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--help"], ["--version"]])
def test_help_loads_no_numerics(arguments: list[str]) -> None:
    found = loaded(*arguments)
    assert "pykinml_func.cli" in found
    assert not found & {"torch", "numpy", "ase", "aevmod", *_FIGURES_AND_FILES}


def test_predict_loads_what_one_structure_needs(folder: Path) -> None:
    found = loaded("predict", folder / "run" / "model.safetensors", folder / "one.xyz")
    assert {"torch", "ase.io"} <= found
    assert not found & {"aevmod", "psutil", "torch._inductor.compile_fx", *_FIGURES_AND_FILES}


def test_structures_of_a_database_do_without_the_formats_of_ase(folder: Path) -> None:
    found = loaded("predict", folder / "run" / "model.safetensors", folder / "C2H2.db")
    assert "torch" in found
    assert not found & {"ase.io", "scipy", *_FIGURES_AND_FILES}


def test_training_loads_figures_when_it_is_over(folder: Path) -> None:
    """Seen after the first epoch, in the middle of the run."""
    code = """
import sys
from pykinml_func.cli import main
from pykinml_func.report.console import ConsoleReporter
def epoch(self, record, epochs):
    print("LOADED", *sys.modules)
    raise SystemExit
ConsoleReporter.epoch = epoch
sys.argv[0] = "pykinml"
main()
"""
    found = loaded(*_training(folder), "--output", folder / "seen", code=code)
    assert "torch" in found
    assert not found & {"matplotlib", "h5py", "ase.io", "scipy", "aevmod", "torch._inductor.compile_fx"}


def test_a_command_that_compiles_nothing_loads_no_compiler(folder: Path) -> None:
    found = loaded("predict", folder / "run" / "model.safetensors", folder / "one.xyz")
    assert not found & _COMPILER


def test_importing_the_package_loads_nothing() -> None:
    found = loaded(code="import sys, pykinml_func; print('LOADED', *sys.modules)")
    assert not found & {"torch", "numpy", "ase", "pydantic", "typer", *_FIGURES_AND_FILES}
