"""Shows how far a comparison is: one bar for all units, one for each that is running."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Bars on a terminal, lines elsewhere; a context. Writes to standard error when `stream` is omitted."""

    def __init__(self, stream: Any = None) -> None:
        self.console = Console(file=stream or sys.stderr, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._total = 0
        self._whole = self._bars.add_task("in all", total=0)

    def __enter__(self) -> "Progress":
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bars as they are."""
        if not self._bars.disable:  # as in planning/progress.py
            self._bars.stop()

    def expect(self, number: int) -> None:
        """Add units to those that are to be done."""
        self._total += number
        self._bars.update(self._whole, total=self._total)

    @contextmanager
    def unit(self, name: str) -> Iterator[Callable[[int, int, str], None]]:
        """Show a unit while it runs; what is yielded takes steps done, steps in all, and what is going on."""
        bar = self._bars.add_task(name, total=None)

        def watch(done: int, total: int, text: str) -> None:
            self._bars.update(bar, completed=done, total=total, description=f"{name}, {text}")

        try:
            yield watch
        finally:
            self._bars.remove_task(bar)

    def done(self, name: str, error: str | None) -> None:
        """Count a unit, and say so where there are no bars; an error is always said."""
        self._bars.advance(self._whole)
        if error is not None:
            self.console.print(f"{name}: {error}", style="yellow", markup=False, soft_wrap=True)
        elif not self.console.is_terminal:
            finished = int(self._bars.tasks[0].completed)
            self.console.print(f"{finished}/{self._total} {name}", markup=False, soft_wrap=True)
