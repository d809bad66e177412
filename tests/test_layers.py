"""The package as its syntax shows it: imports point down, pure files stay pure, errors are raised and named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pykinml_func"

BASE = {"types", "config", "errors", "files", "threads", "units", "version"}
LAYERS = ["potential", "data", "training", "inference", "report", "launch", "options", "commands", "cli", "__main__"]
"""Above the base, from the bottom up."""

LOADS_A_LIBRARY = "potential.aev_kernel"
"""The one module that calls compiled code of ours."""

PURE = {"potential"} | {f"training.{name}" for name in ("losses", "metrics", "optimizers", "schedules", "soap", "step")}
PURE_MAY_IMPORT = PURE | {"types", "config", "errors", "units"}
EFFECT_CALLS = {
    "open",
    "print",
    "input",
    "manual_seed",
    "seed",
    "mkdir",
    "write_text",
    "write_bytes",
    "read_text",
    "save",
}
EFFECT_LIBRARIES = {"os", "pathlib", "random", "shutil", "sqlite3", "subprocess", "tempfile", "time"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"  # the public names, which are of all layers
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that a file imports anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports must be absolute, so that this test can read them"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in inner if name.removeprefix("pykinml_func.") in MODULES]
            if [alias.name for alias in node.names] != ["__version__"]:
                yield from known or [str(node.module)]


def own(tree: ast.AST) -> list[str]:
    """Modules of the package that a file imports, without the package's name."""
    return [
        name.removeprefix("pykinml_func.")
        for name in imported(tree)
        if name.split(".", maxsplit=1)[0] == "pykinml_func"
    ]


def rank(module: str) -> int:
    """0 for the base; the package's own public names, which hide their homes, rank above everything."""
    first = module.split(".", maxsplit=1)[0]
    return 0 if first in BASE else 1 + [*LAYERS, "pykinml_func"].index(first)


def is_pure(module: str) -> bool:
    return module in PURE or module.split(".", maxsplit=1)[0] in PURE


def test_every_pure_file_is_there():
    assert {name for name in PURE if "." in name} <= set(MODULES)
    assert set(MODULES) >= BASE
    assert all(is_pure(name) for name in (LOADS_A_LIBRARY, "potential.ensemble"))
    assert set(MODULES) >= {LOADS_A_LIBRARY, "potential.ensemble"}


@pytest.mark.parametrize("module", MODULES)
def test_one_module_calls_compiled_code(module: str):
    assert ("ctypes" in imported(MODULES[module])) == (module == LOADS_A_LIBRARY)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str):
    upward = [other for other in own(MODULES[module]) if rank(other) > rank(module)]
    assert not upward, f"{module} imports {upward} from above"


@pytest.mark.parametrize("module", [name for name in MODULES if is_pure(name)])
def test_pure_files_import_pure_files(module: str):
    others = [other for other in own(MODULES[module]) if not is_pure(other) and other not in PURE_MAY_IMPORT]
    assert not others, f"{module} is pure and imports {others}"
    libraries = EFFECT_LIBRARIES & {name.split(".", maxsplit=1)[0] for name in imported(MODULES[module])}
    assert not libraries, f"{module} is pure and imports {libraries}"


@pytest.mark.parametrize("module", [name for name in MODULES if is_pure(name)])
def test_pure_files_open_print_and_seed_nothing(module: str):
    functions = [node.func for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)]
    names = {getattr(function, "id", getattr(function, "attr", "")) for function in functions}
    assert not names & EFFECT_CALLS


@pytest.mark.parametrize("module", MODULES)
def test_errors_are_named_and_raised(module: str):
    for node in ast.walk(MODULES[module]):
        assert not isinstance(node, ast.Assert), f"{module}, line {node.lineno}: raise an error in place of assert"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}, line {node.lineno}: a bare except hides every error"
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not silent, f"{module}, line {node.lineno}: an error is swallowed"
