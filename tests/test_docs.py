from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from pykinml_func.cli import main
from pykinml_func.config.build import build_config
from pykinml_func.config.names import ALIASES, SETTINGS, SWITCHES, shown

GUIDE = (Path(__file__).parents[1] / "docs/from_pykinml.md").read_text(encoding="utf-8")

DOCUMENTED = re.findall(
    r"\w+",
    """
    fidlevel fidlevel_lf input_data_type input_data_fname trtsid_name tvt present_elements sae_fit nameset pre_saved
    data_path optimizer lrscheduler learning_rate decayrate LR_patience LR_threshold stepsize momentum weight_decay
    epochs save_every load_model load_model_name tr_batch_size vl_batch_size ts_batch_size my_neurons my_actfn no_biases
    savenm randomseed floss optimize_force_weight fw write_tvtmsk read_trid aev_params cuttoff_radius beta temp delta
    multi_fid ddp gpus num_cores
    """,
)
"""What PyKinML's manual and parser name."""


class Row(NamedTuple):
    theirs: str
    ours: list[str]
    their_default: str
    our_defaults: list[str]


def rows() -> list[Row]:
    found = []
    for line in GUIDE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            assert len(cells) == 6 and cells[2], line
            theirs, ours, default, defaults = (re.findall(r"`([^`]*)`", cells[k]) for k in (0, 1, 3, 4))
            found.append(Row(theirs[0], ours, default[0], defaults))
    return found


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def parser_defaults() -> dict[str, Any]:
    """The defaults in PyKinML's own parser, read without running it."""
    package = importlib.util.find_spec("pykinml")
    if package is None or not package.submodule_search_locations:
        pytest.skip("PyKinML is not installed")
    source = Path(package.submodule_search_locations[0], "prepper.py").read_text(encoding="utf-8")
    defaults = {}
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            name = next(flag for flag in map(ast.literal_eval, call.args) if flag.startswith("--"))
            values = [ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "default"]
            defaults[name.removeprefix("--").replace("-", "_")] = values[0]
    return defaults


def told(default: Any) -> str:
    """A default as the table writes it."""
    return "none" if default in (None, (), [], "") else shown(tuple(default) if isinstance(default, list) else default)


def test_every_argument_of_pykinml_has_one_row() -> None:
    named = [row.theirs for row in rows()]
    assert sorted(named) == sorted([*DOCUMENTED, "pass_aev", "pass_eng", "dscr"])
    assert {*ALIASES, *SWITCHES} <= set(named)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.theirs)
def test_a_row_has_our_name_and_the_default_of_the_configs(row: Row) -> None:
    expected = ALIASES.get(row.theirs) or (SWITCHES.get(row.theirs, row.theirs),)
    assert tuple(row.ours) == expected
    assert row.our_defaults == [told(SETTINGS[name].default) for name in expected]


def test_pykinmls_defaults_are_its_parsers() -> None:
    known = parser_defaults()
    assert len(known) > 40 and set(known) <= set(DOCUMENTED)
    for row in rows():
        if row.theirs in known:
            assert (row.theirs, row.their_default) == (row.theirs, told(known[row.theirs]))


def test_its_toml_is_taken() -> None:
    configs = [build_config(tomllib.loads(text)) for text in blocks("toml")]
    assert configs[0].training.force_weight == 0.3 and configs[0].data.split == (0.8, 0.1, 0.1)
    assert configs[1].training.order == "fixed" and not configs[1].model.biases


def test_its_command_says_what_its_toml_says(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = blocks("")
    made: list[object] = []

    def take(config: object, *_: object) -> object:
        made.append(config)
        return SimpleNamespace(stopped_by=0)

    monkeypatch.setattr("pykinml_func.training.fit.fit", take)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit):
        main()
    assert made == [build_config(tomllib.loads(blocks("toml")[0]))]
