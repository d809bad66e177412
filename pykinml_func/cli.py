"""The command `pykinml`: parses, calls, prints."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pykinml_func.errors import ConfigError, PeerFailedError, PyKinMLError, RankError
from pykinml_func.launch import is_launched, launch
from pykinml_func.options import with_settings
from pykinml_func.version import __version__

if TYPE_CHECKING:
    from pykinml_func.config import ModelConfig, RunConfig
    from pykinml_func.inference.low_level import LowLevel

_BAD_INPUT, _RESUME_ME, _PEER_FAILED, _INTERRUPTED = 2, 75, 1, 130
"""Exit codes; that of a run which was stopped and can be resumed is EX_TEMPFAIL of sysexits.h: try again later."""


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


def _is_first(number: Literal["RANK", "LOCAL_RANK"]) -> bool:
    """Whether this process is the first rank of all, or of its machine; also where there is one alone."""
    return os.environ.get(number, "0") == "0"


def main() -> None:
    """Run the command; what the user can mend ends with one message and exit code 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # Å in a pipe that knows only ASCII
    try:
        app()
    except PeerFailedError:
        sys.exit(_PEER_FAILED)
    except PyKinMLError as error:
        if isinstance(error, RankError) or _is_first("LOCAL_RANK"):  # all ranks of a machine see the same mistake
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


def _run_config(config: list[Path] | None, typed: dict[str, Any]) -> RunConfig:
    """Settings of the file, then those typed, which win. Raises ConfigError."""
    if config and len(config) > 1:
        raise ConfigError(
            f"one configuration file is taken, got {', '.join(map(str, config))}; quote globs (--input 'data/*.db') or "
            "repeat --input before each file, and separate lists by commas (--tvt 36,4,0)"
        )
    from pykinml_func.config.build import build_config
    from pykinml_func.config.toml import read_toml

    return build_config(typed, read_toml(config[0]) if config else {})


def _resumed_config(run: Path, config: list[Path] | None, overwrite: bool, typed: dict[str, Any]) -> RunConfig:
    """Settings of the run in a directory, and those typed. Raises ConfigError."""
    if config or overwrite:
        given = config[0] if config else "--overwrite"
        raise ConfigError(f"resume takes its settings from {run}, got {given} too; leave one of them out")
    from pykinml_func.config.resume import resumed_config

    return resumed_config(run, typed)


ConfigFile = Annotated[
    list[Path] | None, typer.Argument(metavar="[CONFIG.toml]", help="Settings; options win over them.")
]


def train(
    config: ConfigFile = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run that is in the output directory.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with the run in this directory, under its own settings, as if it had not been cut short.",
        ),
    ] = None,
    *,
    settings: dict[str, Any],
) -> None:
    """Train a potential and write its run directory: model, metrics, split, checkpoints, figures.

    Lists are separated by commas (--tvt 36,4,0); names take dashes or underscores; --input is repeated or a quoted
    glob. Example: pykinml train --input 'data/*.db' --forces --epochs 300 --output runs/first. SIGTERM and SIGUSR1 save
    a checkpoint and end the run with exit code 75: it can be resumed.
    """
    run = _run_config(config, settings) if resume is None else _resumed_config(resume, config, overwrite, settings)
    if run.training.ranks > 1 and not is_launched():
        raise typer.Exit(launch(sys.argv[1:], run.training.ranks))
    from pykinml_func.report.console import ConsoleReporter
    from pykinml_func.training.fit import fit

    with ConsoleReporter() as reporter:
        result = fit(run, reporter, overwrite, resume is not None)
    if result.stopped_by == signal.SIGINT:
        if _is_first("RANK"):
            raise KeyboardInterrupt
        raise typer.Exit(_INTERRUPTED)
    if result.stopped_by:
        if _is_first("RANK"):
            name = signal.Signals(result.stopped_by).name
            print(f"stopped by {name}; go on with: pykinml train --resume {result.directory}", file=sys.stderr)
        raise typer.Exit(_RESUME_ME)


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
    inputs: Annotated[list[Path], typer.Argument(help="Structures: files that train reads, or any that ASE reads.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write structures and results as extxyz.")
    ] = None,
    low_level: Annotated[
        str | None,
        typer.Option(
            help="For a model of delta learning, what it is added to: a fidelity level of the input files, or a model "
            "file of that level. Without it the difference is predicted.",
            metavar="LEVEL|MODEL",
        ),
    ] = None,
) -> None:
    """Predict energies (eV) and forces (eV/Å) of structures."""
    from pykinml_func.data.formats.sources import read_structures
    from pykinml_func.inference.low_level import check_low_level, read_low_level
    from pykinml_func.inference.predictor import Predictor, check_output, write_predictions
    from pykinml_func.report.predictions import print_predictions

    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"output must go to a directory that is there, got {output}; make {output.parent} first")
    if output is not None:
        check_output(output)
        _check_own_output(output, model, *inputs, Path(low_level or model))
    predictor, source = Predictor.load(model), None
    if low_level is not None:
        check_low_level(predictor.model_config, "attached")
        source = _low_level(low_level, predictor.model_config)
    if source == "attached":
        images = read_low_level(inputs, int(str(low_level)), predictor.model_config)
    else:
        images = read_structures(inputs)
    predictions = predictor.predict(images, low_level=source)
    if output is not None:
        write_predictions(output, images, predictions)
    print_predictions(images, predictions, output)


def _low_level(text: str, model: ModelConfig) -> LowLevel:
    """A number is a level of the input files, whose labels their structures carry; anything else a model file."""
    if text.isdecimal():
        return "attached"
    from pykinml_func.inference.calculator import PyKinMLCalculator

    calculator = PyKinMLCalculator(text)
    found = calculator.model_config
    if found.baseline is not None or found.fidelities[-1] != model.baseline:
        kind = "a difference of levels" if found.baseline is not None else f"of level {found.fidelities[-1]}"
        raise ConfigError(f"low_level must be a model of level {model.baseline}, got {text}, which is {kind}")
    return calculator


@app.command()
def frequencies(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="A model.safetensors of `pykinml train`; of several, the mean."),
    ],
    structures: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Structures: a file that train reads, or any that ASE reads.")
    ],
    relax: Annotated[bool, typer.Option("--relax", help="Go downhill to a minimum first.")] = False,
    temperature: Annotated[float, typer.Option(help="K, of enthalpy and Gibbs energy.")] = 298.15,
    pressure: Annotated[float, typer.Option(help="Pa, of the Gibbs energy.")] = 101325.0,
    symmetry: Annotated[int, typer.Option(help="Symmetry number: 2 for H2O, 12 for CH4.")] = 1,
    spin: Annotated[float, typer.Option(help="Half the number of unpaired electrons.")] = 0.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the modes as .xyz, .extxyz, .molden or .json (of ASE).")
    ] = None,
) -> None:
    """Wavenumbers, zero-point energy, enthalpy and Gibbs energy of structures, with the spread of several models.

    Second derivatives are exact. Energies are those of an ideal gas of rigid rotors and harmonic vibrations. Example:
    pykinml frequencies model.safetensors h2o.xyz --relax --symmetry 2 -o modes.xyz
    """
    from pykinml_func.data.formats.sources import read_structures
    from pykinml_func.inference.mode_files import check_mode_file, write_modes
    from pykinml_func.inference.thermochemistry import Conditions, check_conditions, thermochemistry
    from pykinml_func.inference.vibrations import vibrations
    from pykinml_func.report.frequencies import print_frequencies
    from pykinml_func.training.model_file import load_model

    conditions = Conditions(temperature, pressure, symmetry, spin)
    check_conditions(conditions)
    if output is not None:
        check_mode_file(output)
        _check_own_output(output, *models, structures)
    loaded, images = [load_model(path) for path in models], read_structures([structures])
    if output is not None and len(images) > 1:
        raise ConfigError(
            f"output takes the modes of one structure, got {len(images)} in {structures}; give a file of one"
        )
    for image in images:
        found = vibrations(loaded, image, relax=relax)
        gas = thermochemistry(found, conditions) if found.n_imaginary < 2 else None
        if output is not None:
            write_modes(output, found)
        print_frequencies(found, gas, conditions, output)


def _check_own_output(output: Path, *read: Path) -> None:
    """Raises ConfigError where `output` is a file that is read."""
    if output.resolve() in {path.resolve() for path in read}:
        raise ConfigError(f"output must differ from what is read, got {output}; give another name")


_CONVERT_SETTINGS: tuple[str, ...] = ("elements", "radial_cutoff", "angular_cutoff", "n_radial", "n_angular_radial")
_CONVERT_SETTINGS += ("n_angular", "beta", "fidelity", "low_fidelity", "delta")


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="OLD.pt", help="A checkpoint of PyKinML.")],
    output: Annotated[Path, typer.Argument(metavar="NEW.safetensors", help="The model to write.")],
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Take PyKinML's defaults for what is not given, and ask nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Turn a checkpoint of PyKinML, single or multi-fidelity, into a model for `pykinml predict`.

    No code of the checkpoint is run. It holds neither the order of the elements nor the cutoffs, sizes and beta of its
    AEVs: those that are not given are asked for. --fidelity and --low-fidelity number its levels; --delta says that it
    was trained with delta. Example: pykinml convert model-0009.pt c5h5.safetensors --elements C,H
    """
    _check_new_model(output, overwrite)
    from pykinml_func.config.build import build_config
    from pykinml_func.config.names import canonical
    from pykinml_func.report.conversion import print_conversion, settings_not_in_checkpoint
    from pykinml_func.training.model_file import save_model
    from pykinml_func.training.pykinml_checkpoint import convert_pykinml, read_pykinml_checkpoint

    given = canonical(settings)
    old = read_pykinml_checkpoint(checkpoint)
    levels: dict[str, Any] = {"multi_fidelity": True} if len(old.networks) > 1 else {}
    if levels and "low_fidelity" not in given:
        levels["low_fidelity"] = 0
    config = build_config(settings | levels | settings_not_in_checkpoint(given, defaults))
    model_config, params = convert_pykinml(old, config.model.aev, config.data.fidelities, config.data.baseline)
    save_model(output, model_config, params)
    print_conversion(checkpoint, output, model_config, params)


def _check_new_model(path: Path, overwrite: bool) -> None:
    """Raises ConfigError where no model can be written to `path`."""
    if path.suffix != ".safetensors":
        raise ConfigError(f"output must end in .safetensors, got {path}; give {path.with_suffix('.safetensors')}")
    if not path.parent.is_dir():
        raise ConfigError(f"output must go to a directory that is there, got {path}; make {path.parent} first")
    if path.exists() and not overwrite:
        raise ConfigError(f"output must be a new file, and {path} is there; give --overwrite to replace it")


app.command()(with_settings(train))
app.command()(with_settings(prepare))
app.command()(with_settings(convert, _CONVERT_SETTINGS))


if __name__ == "__main__":
    main()
