"""The command `pykinml`: parses, calls, prints. Every setting is an option, under our name and PyKinML's."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from pykinml_func.errors import ConfigError, PyKinMLError
from pykinml_func.version import __version__

if TYPE_CHECKING:
    from pykinml_func.config import RunConfig, Setting

_BAD_INPUT, _INTERRUPTED = 2, 130


class _Group(TyperGroup):
    """Says that Ctrl-C was heard; Typer leaves without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None


app = typer.Typer(
    name="pykinml",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)


def main() -> None:
    """Run the command; what the user can mend ends with one message and exit code 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # Å in a pipe that knows only ASCII
    try:
        app()
    except PyKinMLError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except OSError as error:  # no permission, no space
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"Error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Neural-network potentials for gas-phase kinetics: train them on PyKinML databases, predict with them."""
    if version:
        print(__version__)
        raise typer.Exit


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option a setting; it is called with those that were typed, as `settings`."""

    def wrapper(**options: Any) -> None:
        names = [parameter.name for parameter in own]
        typed = {name: value for name, value in options.items() if name not in names and value not in (None, [], ())}
        command(**{name: options[name] for name in names}, settings=typed)

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = inspect.Signature([*own, *_option_parameters()])  # type: ignore[attr-defined]
    return wrapper


def _option_parameters() -> list[inspect.Parameter]:
    """An option a setting, and a hidden one for each of PyKinML's names, so that giving both is noticed."""
    from pykinml_func.config import ALIASES, NOT_YET, SETTINGS

    theirs = {target: alias for alias, targets in ALIASES.items() for target in targets}
    parameters = []
    for name, setting in SETTINGS.items():
        alias = f" PyKinML: --{_dashed(theirs[name])}." if name in theirs else ""
        default = "" if setting.default in (None, ()) else f" Default: {_shown(setting.default)}."
        text = escape(f"{setting.description}.{default}{alias}")
        panel = {"data": "Data", "model": "Networks", "aev": "AEVs", "training": "Training"}[setting.section[-1]]
        parameters.append(_parameter(name, _kind(setting), rich_help_panel=panel, help=text))
    for alias, targets in ALIASES.items():
        kind = str if len(targets) > 1 else _kind(SETTINGS[targets[0]])
        parameters.append(_parameter(alias, kind, hidden=True))
    parameters += [_parameter(name, bool, hidden=True, callback=_refuse) for name in NOT_YET]
    return parameters


def _refuse(option: typer.CallbackParam, value: bool | None) -> None:
    """Before Typer complains of what follows the option."""
    from pykinml_func.config import canonical

    if value is not None:
        canonical({str(option.name): value})


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
    from pykinml_func.config import PATH_LISTS

    return bool if setting.annotation is bool else list[str] if setting.name in PATH_LISTS else str


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(str(value) for value in default)
    return str(default)


def _run_config(config: Path | None, typed: dict[str, Any]) -> RunConfig:
    """Settings of the file, then those typed, which win. Raises ConfigError."""
    from pykinml_func.config import build_config, canonical, read_toml

    return build_config((read_toml(config) if config else {}) | canonical(typed))


ConfigFile = Annotated[Path | None, typer.Argument(metavar="[CONFIG.toml]", help="Settings; options win over them.")]


def train(
    config: ConfigFile = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run that is in the output directory.")] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train a potential and write its run directory: model, metrics, split, checkpoints, figures.

    Lists are separated by commas (--tvt 36,4,0); names take dashes or underscores; --input is repeated or a quoted
    glob. Example: pykinml train --input 'data/*.db' --forces --epochs 300 --output runs/first
    """
    run = _run_config(config, settings)
    from pykinml_func.report.console import ConsoleReporter
    from pykinml_func.training.fit import fit

    with ConsoleReporter() as reporter:
        result = fit(run, reporter, overwrite)
    if result.interrupted:
        raise KeyboardInterrupt


def prepare(config: ConfigFile = None, *, settings: dict[str, Any]) -> None:
    """Read databases and write the prepared set (AEVs on disk) that `train` with the same settings then reuses."""
    run = _run_config(config, settings)
    from pykinml_func.report.console import ConsoleReporter
    from pykinml_func.training import fit

    with ConsoleReporter() as reporter:
        fit.prepare(run, reporter)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model.safetensors of `pykinml train`.")],
    inputs: Annotated[list[Path], typer.Argument(help="Structures: PyKinML databases or any file that ASE reads.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write structures and results as extxyz.")
    ] = None,
) -> None:
    """Predict energies (eV) and forces (eV/Å) of structures."""
    from pykinml_func.inference.predictor import Predictor, check_output, read_structures, write_predictions
    from pykinml_func.report.predictions import print_predictions

    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"output must go to a directory that is there, got {output}; make {output.parent} first")
    if output is not None:
        check_output(output)
        if output.resolve() in {path.resolve() for path in (model, *inputs)}:
            raise ConfigError(f"output must differ from what is read, got {output}; give another name")
    predictor = Predictor.load(model)
    images = read_structures(inputs)
    predictions = predictor.predict(images)
    if output is not None:
        write_predictions(output, images, predictions)
    print_predictions(images, predictions, output)


app.command()(_with_settings(train))
app.command()(_with_settings(prepare))


if __name__ == "__main__":
    main()
