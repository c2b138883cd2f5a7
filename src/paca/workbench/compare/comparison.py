"""Carries a comparison out: plans the units, runs those that are not finished yet, and writes the report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from paca.errors import PacaError
from paca.workbench.compare.choice import Entry
from paca.workbench.compare.folder import finished, store
from paca.workbench.compare.limits import available_bytes
from paca.workbench.compare.progress import Progress
from paca.workbench.compare.rates import rates_of
from paca.workbench.compare.units import (
    LONGEST,
    MEMORY,
    OPERATIONS,
    PARAMETERS,
    PROFILE,
    RANK,
    RANKS,
    RUN,
    SWEEP,
    THROUGHPUT,
    TIME,
    TIMING,
    Unit,
)
from paca.workbench.compare.worker import Worker
from paca.workbench.methods.catalogue import LEAN_FLOOR, METHODS, AdapterSetting
from paca.workbench.recipe.recipe import Recipe

_DEFAULT_RANK = 16


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Args:
        recipe: The work.
        methods: The methods, the floor first.
        seeds: How many; the recipe's seed is the first.
        match: `parameters`: all methods train about as many as the recipe's own; `rank`: all have its rank; `memory`:
            each has the largest rank whose steps peak no higher than those of the recipe's own; `time`: each trains
            as many parameters, and takes as many steps as it can in the time that the recipe's own takes.
        rates: Learning rates by method; several are tried, the best is used.
        sweep: How many rates to try for a method that has none here; 0 takes one that usually does.
        sweep_steps: Steps of a try.
        points: Measurements on the way of a run, the last at its end.
        rounds: Steps of each method that are timed.
        memory_limit: Bytes that a step may need; None for what the machine has.
        unrelated: A text file to show forgetting on; None for the built-in.
    """

    recipe: Recipe
    methods: tuple[Entry, ...]
    seeds: int = 1
    match: str = PARAMETERS
    rates: Mapping[str, list[float]] = field(default_factory=dict)
    sweep: int = 0
    sweep_steps: int = 20
    points: int = 4
    rounds: int = 9
    memory_limit: int | None = None
    unrelated: str | None = None

    def spec(self) -> dict[str, Any]:
        """What all units of a folder have to agree in, as YAML holds it."""
        recipe = self.recipe.to_dict()
        del recipe["output_dir"]
        settings = ("match", "sweep_steps", "points", "unrelated")
        return {"recipe": recipe, **{name: getattr(self, name) for name in settings}}


class Runner:
    """Runs units that are not finished, on as many workers as there are."""

    def __init__(self, folder: Path, workers: Sequence[Worker], progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self._free: SimpleQueue[Worker] = SimpleQueue()
        self._threads = len(workers)
        for worker in workers:
            self._free.put(worker)

    def run(self, units: Iterable[Unit]) -> list[dict[str, Any]]:
        """Run units, or read what they found before; the results, in order, have `error` where a unit failed."""
        units = list(units)
        self.progress.expect(len(units))
        if self._threads == 1:
            return [self._run(unit) for unit in units]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self._run, units))

    def _run(self, unit: Unit) -> dict[str, Any]:
        result = finished(self.folder, unit)
        if result is None:
            worker = self._free.get()
            try:
                with self.progress.unit(unit.title) as watch:
                    result = worker.run(unit, watch)
            finally:
                self._free.put(worker)
            store(self.folder, unit, result)
        self.progress.done(unit.title, result.get("error"))
        return result


def compare(comparison: Comparison, folder: Path, workers: Sequence[Worker], progress: Progress) -> None:
    """Measure all methods on the recipe; a method that fails has its error stored, and the others go on."""
    runner = Runner(folder, workers, progress)
    entries = ranked_entries(comparison, runner)
    profiles = runner.run(Unit(PROFILE, (entry,), {"limit": comparison.memory_limit}) for entry in entries)
    alive = [entry for entry, found in zip(entries, profiles, strict=True) if "error" not in found]
    rates = tuned_rates(comparison, runner, alive)
    paces = relative_paces(comparison, runner, alive) if comparison.match == TIME else {}
    runs = [
        _run_job(comparison, entry, comparison.recipe.seed + index, rates[entry.label], paces.get(entry.label))
        for index in range(comparison.seeds)
        for entry in alive
        if entry.label in rates and entry.label != LEAN_FLOOR and (entry.method.trains or index == 0)
    ]
    results = runner.run(runs)
    failed = {unit.entry.label for unit, found in zip(runs, results, strict=True) if "error" in found}
    timed = tuple(entry for entry in alive if entry.label not in failed)
    if any(entry.method.trains for entry in timed):
        runner.run([Unit(TIMING, timed, {"rounds": comparison.rounds})])


def explore(
    comparison: Comparison, kinds: Iterable[str], folder: Path, workers: Sequence[Worker], progress: Progress
) -> None:
    """Carry out the experiments that train nothing: throughput, longest sequence, operations."""
    runner = Runner(folder, workers, progress)
    entries = ranked_entries(comparison, runner)
    limit = comparison.memory_limit or available_bytes()
    values: dict[str, dict[str, Any]] = {
        THROUGHPUT: {
            "limit": limit,
            "rounds": comparison.rounds,
            "tokens": comparison.recipe.training.get("max_length") or 1024,  # TRL's own default
        },
        LONGEST: {"limit": limit},
        OPERATIONS: {},
    }
    runner.run(Unit(kind, (entry,), values[kind]) for kind in kinds for entry in entries)


def ranked_entries(comparison: Comparison, runner: Runner) -> list[Entry]:
    """Give each method its rank, target modules and arguments."""
    recipe, own = comparison.recipe, dict(comparison.recipe.method.config)
    rank = own.pop("r", _DEFAULT_RANK)
    own.pop("random_seed", None)  # seeds are what the runs differ in
    targets, blocks = own.pop("target_modules", "all-linear"), own.pop("layers_to_transform", None)
    plain = AdapterSetting(rank, targets, recipe.seed, blocks=blocks)
    by_recipe = {recipe.method.name: own}  # what the recipe says of its own method besides rank and layers
    entries = [
        replace(
            entry,
            setting=replace(plain, arguments={**by_recipe.get(entry.method.name, {}), **entry.setting.arguments}),
        )
        for entry in comparison.methods
    ]
    if comparison.match == RANK:
        if "budget" in own:
            raise PacaError(
                f"--match rank: the recipe has method.budget = {own['budget']!r} in place of a rank that others could "
                "have; write method.r, or match parameters."
            )
        return entries
    measure = next((entry for entry in entries if entry.label == recipe.method.name), None) or Entry(
        recipe.method.name, METHODS.get(recipe.method.name, METHODS["paca"]), replace(plain, arguments=own)
    )
    others = tuple(entry for entry in entries if entry.label != measure.label and entry.method.peft)
    [found] = runner.run([Unit(RANKS, (measure, *others), {"by": MEMORY} if comparison.match == MEMORY else {})])
    if "error" in found:
        alike = "peak equally high" if comparison.match == MEMORY else "train equally many parameters"
        raise PacaError(f"The ranks that {alike} can't be found: {found['error']}")
    ranks = {label: row["rank"] for label, row in found["ranks"].items()}
    return [
        replace(entry, setting=replace(entry.setting, rank=ranks.get(entry.label, entry.setting.rank)))
        for entry in entries
    ]


def tuned_rates(comparison: Comparison, runner: Runner, entries: Sequence[Entry]) -> dict[str, float | None]:
    """Find a learning rate for each method, with the same budget for each that is tuned.

    None for a method that trains nothing, and no entry for one whose every try failed.
    """
    recipe = comparison.recipe
    tried: list[Unit] = []
    rates: dict[str, float | None] = {}
    for entry in entries:
        own = recipe.training.get("learning_rate") if entry.method.name == recipe.method.name else None
        grid = rates_of(entry, comparison.rates, comparison.sweep, own)
        if not entry.method.trains or len(grid) == 1:
            rates[entry.label] = grid[0] if entry.method.trains else None
            continue
        values = {"seed": recipe.seed, "steps": comparison.sweep_steps}
        tried += [Unit(SWEEP, (entry,), {**values, "rate": rate}) for rate in grid]
    best: dict[str, float] = {}
    for unit, found in zip(tried, runner.run(tried), strict=True):
        label, loss = unit.entry.label, found.get("loss")
        if loss is not None and loss < best.get(label, math.inf):
            best[label], rates[label] = loss, unit.values["rate"]
    return rates


def relative_paces(comparison: Comparison, runner: Runner, entries: Sequence[Entry]) -> dict[str, float]:
    """Time steps before anything is trained; how many each method takes while the recipe's own takes one.

    A PacaError if the recipe's own method is not among them, or steps can't be timed.
    """
    own = comparison.recipe.method.name
    trained = [entry.label for entry in entries if entry.method.trains]
    if own not in trained:
        raise PacaError(
            f"--match time: the recipe's own method, {own!r}, sets the time, and is not among those that can be "
            f"trained ({', '.join(trained) or 'none'}); add it to --methods."
        )
    [found] = runner.run([Unit(TIMING, tuple(entries), {"rounds": comparison.rounds})])
    if "error" in found:
        raise PacaError(f"--match time: steps can't be timed: {found['error']}")
    times = {label: row["to_floor"] for label, row in found["methods"].items()}
    return {label: times[own] / times[label] for label in trained}


def _run_job(comparison: Comparison, entry: Entry, seed: int, rate: float | None, pace: float | None) -> Unit:
    entry = replace(entry, setting=replace(entry.setting, seed=seed))
    paced = {} if pace is None else {"pace": pace}
    return Unit(RUN, (entry,), {"seed": seed, "rate": rate, "points": comparison.points, **paced})
