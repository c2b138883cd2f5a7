"""Held-out loss of PaCA and LoRA at equal numbers of trained values: tasks, variants, seeds, searched learning rates.

    python benchmarks/quality.py --json quality.json                      all tasks, five seeds; hours on a CPU
    python benchmarks/quality.py --json quality.json --tasks llama-reference --variants lora paca-out
    python benchmarks/quality.py --json quality.json --rate-shares 1 0.5 0.25       what is forgotten on the way, too
    python benchmarks/quality.py --json quality.json --show               only the tables of what was run

Each variant's learning rate is searched on held-out data of its own, with a seed of its own: the grid doubles or
halves until its best rate has a worse one on either side. At that rate it is then trained with every seed, and judged
by other held-out data. Differences to LoRA are paired by seed, with Student's 95 % interval. A run is written to the
file as soon as it is there, so a benchmark that was stopped goes on where it was.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from scipy import stats

from benchmark import benchmark, make_parser, print_table, read_results, surroundings, write_results
from paca.workbench.base.options import positive
from quality_tasks import TASKS, Subject, Task
from quality_variants import LORA, MAIN, VARIANTS, Variant, run_once

CHOOSING_SEED = 100
_MOST_RATES = 9


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        task: A key of `TASKS`.
        variant: A key of `VARIANTS`.
        rate: The peak of its learning rate.
        seed: Of the connections and the order of the data; `CHOOSING_SEED` to choose a rate.
    """

    task: str
    variant: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """What its result is filed under."""
        return f"{self.task} {self.variant} {self.rate:g} seed {self.seed}"


@dataclass(frozen=True)
class Search:
    """What is known of a variant's learning rate on a task.

    Args:
        losses: By rate, on the data to choose by.
        next_rate: The one to try next; None once the best has a worse one on either side.
    """

    losses: dict[float, float]
    next_rate: float | None

    @property
    def best(self) -> float:
        """The rate of the lowest loss."""
        return min(self.losses, key=self.losses.__getitem__)

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the highest or lowest of those tried."""
        return self.best in (min(self.losses), max(self.losses))


def search(results: dict[str, Any], task: Task, variant: Variant) -> Search:
    """See how far the search of a learning rate is.

    Args:
        results: What was run, by key.
        task: What is learned.
        variant: The method.

    Returns:
        The losses found, and the rate that is missing.
    """
    losses: dict[float, float] = {}
    wanted = variant.rate
    while (found := results.get(Run(task.name, variant.name, wanted, CHOOSING_SEED).key)) is not None:
        losses[wanted] = found["loss"]
        best = min(losses, key=losses.__getitem__)
        around = [rate for rate in (best / 2, best * 2) if rate not in losses]
        if not around or len(losses) == _MOST_RATES:
            return Search(losses, None)
        wanted = around[0]
    return Search(losses, wanted)


def next_run(
    results: dict[str, Any], task: Task, variants: Sequence[str], seeds: Sequence[int], shares: Sequence[float] = (1,)
) -> Run | None:
    """The next run of a task: all rates first, then seed by seed, so that what is there can be compared.

    Args:
        results: What was run, by key.
        task: What is learned.
        variants: In order.
        seeds: In order.
        shares: Of the best rate, that seeds are trained at.

    Returns:
        It; None if all is there.
    """
    searches = {name: search(results, task, VARIANTS[name]) for name in variants}
    for name, found in searches.items():
        if found.next_rate is not None:
            return Run(task.name, name, found.next_rate, CHOOSING_SEED)
    rates = [(name, share * found.best) for share in shares for name, found in searches.items()]
    runs = (Run(task.name, name, rate, seed) for seed in seeds for name, rate in rates)
    return next((run for run in runs if run.key not in results), None)


def paired(losses: dict[int, float], reference: dict[int, float]) -> str:
    """The mean difference to a reference in per cent of it, by the seeds of both, with its 95 % interval."""
    seeds = sorted(losses.keys() & reference.keys())
    differences = [100 * (losses[seed] / reference[seed] - 1) for seed in seeds]
    if not differences:
        return "–"
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return f"{mean:+.2f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.2f} ± {half:.2f}"


_COLUMNS = (
    "variant",
    "learning rate",
    "trained",
    "loss, mean",
    "to LoRA, % ± 95 %",
    "unrelated text",
    "CPU s a step",
    "a run",
    "losses by seed",
)


_SEARCH_COLUMNS = (
    "variant",
    "best rate",
    "loss there",
    "losses at the rates tried, on data of their own and one seed",
)


def search_rows(results: dict[str, Any], task: Task, variants: Sequence[str]) -> Iterator[Sequence[str]]:
    """What was found of each variant's learning rate, those included that were tried at no seed.

    Args:
        results: What was run, by key.
        task: What was learned.
        variants: In order.

    Yields:
        Sequence[str]: A row.
    """
    for name in variants:
        found = search(results, task, VARIANTS[name])
        if found.losses:
            best = f"{found.best:g}{' (edge)' if found.at_edge else ''}"
            tried = ", ".join(f"{rate:g}: {found.losses[rate]:.4f}" for rate in sorted(found.losses))
            yield name, best, f"{found.losses[found.best]:.4f}", tried


def rows(
    results: dict[str, Any], task: Task, variants: Sequence[str], seeds: Sequence[int]
) -> Iterator[Sequence[str]]:
    """What a task's table says of each variant that was run with a seed.

    Args:
        results: What was run, by key.
        task: What was learned.
        variants: In order.
        seeds: In order.

    Yields:
        Sequence[str]: A row.
    """
    by_variant = {name: _by_seed(results, task, name, seeds) for name in variants}
    reference = {seed: run["loss"] for seed, run in by_variant.get(LORA, {}).items()}
    for name, runs in by_variant.items():
        if not runs:
            continue
        found, losses = search(results, task, VARIANTS[name]), {seed: run["loss"] for seed, run in runs.items()}
        known = [run["unrelated"] for run in runs.values() if run["unrelated"] is not None]
        seconds = statistics.mean(run["cpu_seconds_per_step"] for run in runs.values())
        yield (
            name,
            f"{found.best:g}{' (edge)' if found.at_edge else ''}",
            f"{next(iter(runs.values()))['trained']:,}",
            f"{statistics.mean(losses.values()):.4f}",
            "" if name == LORA else paired(losses, reference),
            f"{statistics.mean(known):.4f}" if known else "–",
            f"{seconds:.3f}",
            f"{seconds * next(iter(runs.values())).get('steps', task.steps):.1f}",
            ", ".join(f"{loss:.4f}" for loss in losses.values()),
        )


_FORGETTING_COLUMNS = (
    "variant",
    "learning rate",
    "loss, mean",
    "unrelated text",
    "to LoRA's at the same loss, % ± 95 %",
)


def forgetting_rows(
    results: dict[str, Any], task: Task, variants: Sequence[str], seeds: Sequence[int], shares: Sequence[float]
) -> Iterator[Sequence[str]]:
    """How much is forgotten for what is learned: a gentler rate buys less of both.

    LoRA's loss on unrelated text is interpolated, seed by seed, between those of its own rates, to the loss that the
    other variant ended at. Where that is lower than any of LoRA's, it is compared with LoRA at its lowest.

    Args:
        results: What was run, by key.
        task: What was learned.
        variants: In order.
        seeds: In order.
        shares: Of each variant's best rate.

    Yields:
        Sequence[str]: A row.
    """
    lora = [_by_seed(results, task, LORA, seeds, share) for share in sorted(shares, reverse=True)]
    for name in variants:
        for share in shares:
            runs = _by_seed(results, task, name, seeds, share)
            if not runs or any(run["unrelated"] is None for run in runs.values()):
                continue
            unrelated = {seed: run["unrelated"] for seed, run in runs.items()}
            there = {seed: _forgotten_at(run["loss"], seed, lora) for seed, run in runs.items()}
            known = {seed: value for seed, value in there.items() if value is not None}
            yield (
                name,
                f"{share * search(results, task, VARIANTS[name]).best:g}",
                f"{statistics.mean(run['loss'] for run in runs.values()):.4f}",
                f"{statistics.mean(unrelated.values()):.4f}",
                "" if name == LORA else paired(unrelated, known),
            )


def _forgotten_at(loss: float, seed: int, rates: list[dict[int, dict[str, Any]]]) -> float | None:
    runs = sorted((runs[seed]["loss"], runs[seed]["unrelated"]) for runs in rates if seed in runs)
    if len(runs) < 2 or loss > runs[-1][0]:
        return None
    losses, unrelated = zip(*runs, strict=True)
    return float(numpy.interp(loss, losses, unrelated))


def _by_seed(
    results: dict[str, Any], task: Task, name: str, seeds: Sequence[int], share: float = 1
) -> dict[int, dict[str, Any]]:
    found = search(results, task, VARIANTS[name])
    if not found.losses:
        return {}
    keys = {seed: Run(task.name, name, share * found.best, seed).key for seed in seeds}
    return {seed: results[key] for seed, key in keys.items() if key in results}


def _applicable(task: Task, variants: Sequence[str]) -> list[str]:
    return [name for name in variants if _applies(VARIANTS[name], task)]


def _applies(variant: Variant, task: Task) -> bool:
    known = variant.optimizer in task.optimizers and variant.layers in task.layers
    return known and variant.restored <= task.quantized and variant.norms <= task.norms


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__, tasks=TASKS, variants=VARIANTS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(MAIN), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--rate-shares",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="SHARE",
        help="train with every seed at these shares of the best rate; several give a table of what is forgotten",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="has cifar10.npz, mmlu/ and oasst/")
    parser.add_argument("--cache", type=Path, default=Path("outputs/quality"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results so far; read, and added to")
    parser.add_argument("--show", action="store_true", help="run nothing, print the tables of the file")
    parser.add_argument("--most-runs", type=positive, help="stop after so many new runs")
    parser.add_argument("--threads", type=positive, help="torch's threads (default: torch's own choice)")
    return parser


def run_missing(arguments: argparse.Namespace, task: Task, results: dict[str, Any], most: int) -> int:
    """Run what a task lacks, writing each result.

    Args:
        arguments: The command line.
        task: The task.
        results: What was run, by key; is added to.
        most: So many runs at the most.

    Returns:
        How many runs were done.
    """
    subject: Subject | None = None
    variants = _applicable(task, arguments.variants)
    for done in range(most):
        run = next_run(results, task, variants, arguments.seeds, arguments.rate_shares)
        if run is None:
            return done
        print(run.key, file=sys.stderr, flush=True)
        subject = subject or task.load(arguments.data, arguments.cache)
        choosing = run.seed == CHOOSING_SEED
        results[run.key] = run_once(VARIANTS[run.variant], task, subject, run.rate, run.seed, choosing)
        write_results(arguments.json, {"runs": results} | surroundings())
    return most


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Run what is missing, and print a table for each task."""
    results: dict[str, Any] = read_results(arguments.json).get("runs", {})
    left = 0 if arguments.show else arguments.most_runs or sys.maxsize
    for name in arguments.tasks:
        task = TASKS[name]
        left -= run_missing(arguments, task, results, left)
        variants = _applicable(task, arguments.variants)
        searched = list(search_rows(results, task, variants))
        if searched:
            print(f"\n{name}: {task.description}\n")
            print_table(_COLUMNS, rows(results, task, variants, arguments.seeds), text=["losses by seed"])
            print()
            print_table(_SEARCH_COLUMNS, searched, text=_SEARCH_COLUMNS[-1:])
            if len(arguments.rate_shares) > 1:
                print()
                told = forgetting_rows(results, task, variants, arguments.seeds, arguments.rate_shares)
                print_table(_FORGETTING_COLUMNS, told)


if __name__ == "__main__":
    sys.exit(main())
