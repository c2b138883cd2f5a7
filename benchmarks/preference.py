"""Held-out preference accuracy before and after a preference recipe, over seeds.

    python benchmarks/preference.py --data FOLDER                           smollm2-preference, three seeds
    python benchmarks/preference.py --data FOLDER --set training.beta=0.2   with keys of the recipe set otherwise
    python benchmarks/preference.py --recipe mine.yaml --seeds 1 2 --json accuracy.json

FOLDER holds the recipe's data. A seed fixes the connections and the order of the data; the rows that are held out are
the same. Each run is a whole `paca finetune`, its examination and both measurements included. A model that is its
reference prefers nothing: half. With `--json`, a benchmark that was stopped goes on where it was.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark import benchmark, finetuned, make_parser, print_table, read_results, write_results

_COLUMNS = ("seed", "accuracy before", "after", "error", "reward margin", "KL", "minutes", "of processor time")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--recipe", default="smollm2-preference", help="a recipe (default: %(default)s)")
    parser.add_argument("--data", metavar="FOLDER", help="the recipe's data.path")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44], help="(default: 42 43 44)")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="further keys of the recipe")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results so far; read, and added to")
    return parser


def run(recipe: str, seed: int, settings: list[str]) -> dict[str, Any]:
    """Run the recipe once.

    Args:
        recipe: Its name.
        seed: Of connections and data.
        settings: Keys that are set in it.

    Returns:
        What was measured before and after, of how many held-out rows, and seconds on the clock and of the processor.
    """
    began, worked = time.perf_counter(), time.process_time()
    metrics = finetuned(recipe, [*settings, f"seed={seed}", f"method.random_seed={seed}"])
    return {
        **{key: metrics[key] for key in ("before", "after", "held_out", "steps")},
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
    }


def rose(result: dict[str, Any]) -> bool:
    """Whether accuracy rose by more than its standard error."""
    after: dict[str, float] = result["after"]
    return after["accuracy"] - result["before"]["accuracy"] > after["accuracy_error"]


def measure(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Run what is missing.

    Args:
        arguments: The command line.
        results: Are put here, by seed.

    Yields:
        tuple[str, ...]: A row of the table, when its run is done.
    """
    found = read_results(arguments.json)
    settings = [*([f"data.path={arguments.data}"] if arguments.data else []), *arguments.set]
    for seed in arguments.seeds:
        key = " ".join([arguments.recipe, *arguments.set, f"seed={seed}"])
        found[key] = found.get(key) or run(arguments.recipe, seed, settings)
        write_results(arguments.json, found)
        results.append(found[key])
        before, after = found[key]["before"], found[key]["after"]
        yield (
            str(seed),
            *(f"{measured['accuracy']:.1%}" for measured in (before, after)),
            f"{after['accuracy_error']:.1%}",
            f"{after['margin']:.3f}",
            f"{after['kl']:.4f}",
            *(f"{found[key][name] / 60:.1f}" for name in ("seconds", "processor_seconds")),
        )


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Print the table, and at how many seeds the accuracy rose by more than its standard error."""
    results: list[dict[str, Any]] = []
    print_table(_COLUMNS, measure(arguments, results))
    held, before, after = (
        results[0]["held_out"],
        *(statistics.mean(result[key]["accuracy"] for result in results) for key in ("before", "after")),
    )
    print(
        f"\n{arguments.recipe}, {held['sequences']} of {held['total']} held-out rows, {results[0]['steps']} steps: "
        f"{before:.1%} -> {after:.1%} in the mean; by more than the standard error at "
        f"{sum(map(rose, results))} of {len(results)} seeds"
    )


if __name__ == "__main__":
    sys.exit(main())
