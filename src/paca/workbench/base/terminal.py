"""Tables for a terminal of 80 columns, and for pipes, which have no edge to cut columns at."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80
PIPE_WIDTH = 160


def output_console() -> Console:
    """A console on standard output: as wide as the terminal, or wide enough for any table of ours."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def narrow_table(title: str, heads: Sequence[str] = (), rows: Iterable[Sequence[str | Text]] = ()) -> Table:
    """A table without a frame, with one space between columns: methods to the left, and numbers to the right.

    Args:
        title: What stands above it.
        heads: Of the columns after the methods'.
        rows: Cells, the method first; more can be added.

    Returns:
        The table.
    """
    table = Table(title=title, box=box.SIMPLE, padding=0, min_width=min(len(title) + 2, WIDTH))
    table.add_column("method", overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table
