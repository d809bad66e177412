"""The command `pykinml`: its commands, and how it ends."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pykinml_func.commands.combine import combine
from pykinml_func.commands.convert import CONVERT_SETTINGS, convert
from pykinml_func.commands.evaluate import evaluate
from pykinml_func.commands.exits import BAD_INPUT, INTERRUPTED, PEER_FAILED, is_first
from pykinml_func.commands.frequencies import frequencies
from pykinml_func.commands.predict import predict
from pykinml_func.commands.prepare import prepare
from pykinml_func.commands.select import select
from pykinml_func.commands.split import split
from pykinml_func.commands.train import train
from pykinml_func.errors import PeerFailedError, PyKinMLError, RankError
from pykinml_func.options import with_settings
from pykinml_func.version import __version__


class _Group(TyperGroup):
    """Says that Ctrl-C was heard; Typer leaves without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


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
    except PeerFailedError:
        sys.exit(PEER_FAILED)
    except PyKinMLError as error:
        if isinstance(error, RankError) or is_first("LOCAL_RANK"):  # all ranks of a machine see the same mistake
            print(f"Error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except OSError as error:  # no permission, no space
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"Error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Neural-network potentials for gas-phase kinetics: train them on PyKinML databases, predict with them."""
    if version:
        print(__version__)
        raise typer.Exit


for command in (
    with_settings(train),
    with_settings(prepare),
    predict,
    evaluate,
    frequencies,
    combine,
    split,
    select,
    with_settings(convert, CONVERT_SETTINGS),
):
    app.command()(command)


if __name__ == "__main__":
    main()
