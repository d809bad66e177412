"""Options of the command line, made from the settings: one a setting, under our name and PyKinML's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

if TYPE_CHECKING:
    from pykinml_func.config.names import Setting


def with_settings(command: Callable[..., None], only: Collection[str] = ()) -> Callable[..., None]:
    """Give a command one option a setting, of all or of those in `only`; it is called with those that were typed, as
    `settings`.
    """

    def wrapper(**options: Any) -> None:
        names = [parameter.name for parameter in own]
        typed = {name: value for name, value in options.items() if name not in names and value not in (None, [], ())}
        command(**{name: options[name] for name in names}, settings=typed)

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = inspect.Signature([*own, *_option_parameters(only)])  # type: ignore[attr-defined]
    return wrapper


def _option_parameters(only: Collection[str]) -> list[inspect.Parameter]:
    """An option a setting, and a hidden one for each of PyKinML's names, so that giving both is noticed; where `only`
    is given, for those settings alone.
    """
    from pykinml_func.config.names import ALIASES, SETTINGS, SWITCHES

    parameters = []
    for name in only or SETTINGS:
        setting = SETTINGS[name]
        panel = {"data": "Data", "model": "Networks", "aev": "AEVs", "training": "Training"}[setting.section[-1]]
        parameters.append(_parameter(name, _kind(setting), rich_help_panel=panel, help=_help(setting)))
    for alias, targets in ALIASES.items():
        kind = str if len(targets) > 1 else _kind(SETTINGS[targets[0]])
        if not only or targets[0] in only:
            parameters.append(_parameter(alias, kind, hidden=True))
    if only:
        return parameters
    switches = [name for name in SWITCHES if name != "no_biases"]  # --biases has it as its opposite
    return parameters + [_parameter(name, str if name == "gpus" else bool, hidden=True) for name in switches]


def _help(setting: Setting) -> str:
    """What a setting is, its default, and PyKinML's names for it where they differ."""
    from pykinml_func.config.names import ALIASES, SWITCHES, shown

    theirs = [alias for alias, targets in ALIASES.items() if setting.name in targets]
    theirs += [name for name, about in SWITCHES.items() if about == setting.name]
    default = "" if setting.default in (None, ()) else f" Default: {shown(setting.default)}."
    named = f" PyKinML: {', '.join(f'--{_dashed(name)}' for name in theirs)}." if theirs else ""
    return escape(f"{setting.description}.{default}{named}")


def _parameter(name: str, kind: Any, **options: Any) -> inspect.Parameter:
    declaration = f"--{_dashed(name)}/--no-{_dashed(name)}" if kind is bool else f"--{_dashed(name)}"
    metavar = None if kind is bool else "TEXT"
    option = typer.Option(declaration, show_default=False, metavar=metavar, **options)
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(setting: Setting) -> Any:
    """The type that the command line sees: text, which the config turns into numbers, but for flags and lists of
    paths.
    """
    from pykinml_func.config.names import PATH_LISTS

    return bool if setting.annotation is bool else list[str] if setting.name in PATH_LISTS else str


def _dashed(name: str) -> str:
    return name.replace("_", "-")
