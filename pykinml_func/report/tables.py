"""Tables whose numbers stay whole where the terminal is narrow, or is a pipe, which counts as 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDEST = 10_000


def whole_width(console: Console, table: Table) -> int:
    """How many columns of a terminal a table needs so that nothing is wrapped or cut."""
    return Measurement.get(console, console.options.update_width(_WIDEST), table).maximum


def print_whole(console: Console, table: Table) -> None:
    """Print a table on a console that is made as wide as that: a terminal wraps lines, where rich would cut them."""
    console.width = max(console.width, whole_width(console, table))
    console.print(table)
