"""Runs units in a process of their own, so that one that is killed for memory takes nothing else with it."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Protocol

from paca.workbench.base.asides import hush_imports
from paca.workbench.base.progress import quiet_libraries
from paca.workbench.compare import units
from paca.workbench.compare.failures import KILLED, describe_failure
from paca.workbench.compare.limits import longest_sequence, throughput
from paca.workbench.compare.measures import match_ranks, operations, profile, time_steps
from paca.workbench.compare.training import full_run, try_rate
from paca.workbench.compare.units import Unit, Watch
from paca.workbench.compare.workload import Workload
from paca.workbench.recipe.recipe import Recipe

# What measures a unit: on the recipe's workload, with the unit's values, telling how far it is.
KINDS: dict[str, Callable[[Workload, Unit, Watch], dict[str, Any]]] = {
    units.RANKS: match_ranks,
    units.PROFILE: profile,
    units.SWEEP: try_rate,
    units.RUN: full_run,
    units.TIMING: time_steps,
    units.THROUGHPUT: throughput,
    units.LONGEST: longest_sequence,
    units.OPERATIONS: operations,
}


class Worker(Protocol):
    """Something that runs units one after another."""

    def run(self, unit: Unit, watch: Watch) -> dict[str, Any]:
        """Run a unit; what goes wrong is in the result, as `error`."""
        ...


class InProcessWorker:
    """Runs units in this process."""

    def __init__(self, recipe: Recipe, unrelated: str | None = None) -> None:
        self._workload = Workload(recipe, unrelated)

    def run(self, unit: Unit, watch: Watch) -> dict[str, Any]:
        """Run a unit; what goes wrong is in the result, as `error`."""
        with quiet():
            try:
                return KINDS[unit.kind](self._workload, unit, watch)
            except Exception as error:
                return describe_failure(error)


class SubprocessWorker:
    """Runs units in a child process, which is started again if it was killed; it sees the given GPU, or all."""

    def __init__(self, recipe: Recipe, unrelated: str | None = None, gpu: str | None = None) -> None:
        self._arguments = (recipe, unrelated, gpu)
        self._process: Any = None
        self._line: Connection | None = None

    def run(self, unit: Unit, watch: Watch) -> dict[str, Any]:
        """Run a unit; what goes wrong is in the result, as `error`."""
        line = self._connected()
        try:
            line.send(unit)
            while True:
                what, value = line.recv()
                if what == "result":
                    result: dict[str, Any] = value
                    return result
                watch(*value)
        except (EOFError, ConnectionError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            killed = code == -signal.SIGKILL
            return {"error": KILLED if killed else f"the process ended with status {code}", "out_of_memory": killed}

    def close(self) -> None:
        """End the child process, at once if it is at work."""
        if self._process is not None and self._line is not None:
            self._line.close()
            self._process.join(timeout=5)
            self._process.terminate()
            self._process.join()
            self._process = None

    def _connected(self) -> Connection:
        if self._process is None or self._line is None:
            context = multiprocessing.get_context("spawn")
            self._line, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other, *self._arguments), daemon=True)
            self._process.start()
            other.close()
        return self._line


def _serve(line: Connection, recipe: Recipe, unrelated: str | None, gpu: str | None) -> None:
    """What the child does: units in, news and results out, until the parent goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    hush_imports()
    here = InProcessWorker(recipe, unrelated)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            unit = line.recv()
            line.send(("result", here.run(unit, lambda *news: line.send(("news", news)))))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what libraries say about every model that is made, inside a `with` block."""
    import warnings

    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
