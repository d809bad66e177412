from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import pykinml_func

OBJECTS = [name for name in pykinml_func.__all__ if name != "__version__"]


def imported_for_type_checkers() -> dict[str, str]:
    """Public name -> module, from the block that mypy and editors read."""
    tree = ast.parse(Path(pykinml_func.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


def test_public_names_are_those_of_type_checkers() -> None:
    assert sorted(imported_for_type_checkers()) == sorted(OBJECTS)
    assert len(set(pykinml_func.__all__)) == len(pykinml_func.__all__)


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_name_is_what_its_module_has(name: str) -> None:
    home = import_module(imported_for_type_checkers()[name])
    assert getattr(pykinml_func, name) is getattr(home, name)


def test_dir_shows_every_public_name() -> None:
    assert set(pykinml_func.__all__) <= set(dir(pykinml_func))
    assert "__version__" in dir(pykinml_func)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'enery'"):
        _ = pykinml_func.enery
