"""What a long plan shows while it runs: a bar on standard error with the time left, none where nobody looks."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

STEPS_OF_A_SEARCH = 8  # the usual number of simulations that one takes


class PlanProgress:
    """A bar over the simulations of a plan, by the modules entered; `searches` sizes are searched for each method."""

    def __init__(self, methods: int, searches: int) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._per_method = 2 + searches * STEPS_OF_A_SEARCH
        self._task = self._bar.add_task("", total=methods * self._per_method)
        self._methods: list[str] = []
        self._done = 0.0
        self._entered = 0
        self._most = 1000

    def __enter__(self) -> "PlanProgress":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take it away."""
        if not self._bar.disable:  # a bar that isn't shown ends with an empty line in older versions of rich
            self._bar.stop()

    def say(self, words: str) -> None:
        """Tell what is done next: the method, and after a comma what is searched."""
        method = words.partition(",")[0]
        if self._methods[-1:] != [method]:
            self._methods.append(method)
            self._done = (len(self._methods) - 1) * self._per_method
        else:
            self._done = min(self._done + 1, len(self._methods) * self._per_method - 0.1)
        self._most = max(self._most, self._entered)
        self._entered = 0
        self._bar.update(self._task, description=words, completed=self._done)

    def entered(self) -> None:
        """Count a module that a simulation has entered; the last simulation tells how many there will be."""
        self._entered += 1
        if self._entered % 50 == 0:
            part = min(self._entered / self._most, 0.99)
            self._bar.update(self._task, completed=self._done + part)
