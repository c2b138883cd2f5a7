"""How everything here is timed: in turns in one process, the floor among it twice.

The second floor is the same work under another name, so its ratio to the first is the noise of the run: a ratio of two
methods that is closer to 1 than this one means nothing.
"""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from benchmark import progress
from paca.profiling.steps import interleave

FLOOR = "floor"
FLOOR_AGAIN = "floor again"
_WARM_UP_ROUNDS = 2

Timed = TypeVar("Timed")


def time_in_turns(
    runs: Mapping[str, Callable[[], Timed]], rounds: int, title: str, warm_up: int = _WARM_UP_ROUNDS
) -> dict[str, list[Timed]]:
    """Run each a few times to warm it up, then all of them in turns, every other round in reverse.

    Args:
        runs: What to time, by name; each call returns the time that it took.
        rounds: How often each is timed.
        title: What progress is shown under.
        warm_up: How often each is run before.

    Returns:
        The times of each, in the order in which they were taken.
    """
    for name, run in runs.items():
        progress(f"{title}: warming up {name}")
        for _ in range(warm_up):
            run()
    started = time.perf_counter()

    def report(done: int) -> None:
        left = (time.perf_counter() - started) / done * (rounds - done)
        progress(f"{title}: round {done} of {rounds}, {left:.0f} s left")

    times = interleave(runs, rounds, report)
    progress("")
    return times
