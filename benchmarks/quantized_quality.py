"""Held-out loss of QPaCA and QLoRA on the same quantized model, with about as many trained parameters.

    python benchmarks/quantized_quality.py                           60 steps each, about a quarter of an hour
    python benchmarks/quantized_quality.py --seeds 42 43 44 --lora-rates 2e-3 --json losses.json

Both run the recipe smollm2-qpaca: same NF4 base, same batches in the same order, same schedule. PaCA of rank 16 trains
as many values as LoRA of rank 8 within 2 %, and starts from unquantized columns: random ones ("QPaCA"), or those in
which quantization costs most, by column norm and input channel ("QPaCA chosen"). Each is run at several learning rates
and seeds, and its best rate on the held-out text itself counts, by the mean over the seeds. With `--json`, a run that
was stopped goes on where it was.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark import benchmark, finetuned, make_parser, print_table, read_results, write_results
from paca.workbench.base.options import positive
from report import over_seeds

RECIPE = "smollm2-qpaca"
PACA = ("method.column_source=smollm2-135m-instruct",)  # the columns as they were before quantization
CHOSEN = (*PACA, "method.selection=weight_activation", "method.selection_batches=8")
LORA = ("method.name=lora", "method.r=8", "method.lora_alpha=16")
_COLUMNS = ("method", "learning rate", "trained", "loss before", "loss after, mean", "deviation", "by seed")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--steps", type=positive, default=60, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--paca-rates", nargs="*", default=["6e-3"], metavar="RATE", help="of random columns")
    parser.add_argument("--chosen-rates", nargs="*", default=["1e-3"], metavar="RATE", help="of chosen columns")
    parser.add_argument(
        "--lora-rates", nargs="*", default=["1e-3", "2e-3", "3e-3"], metavar="RATE", help="LoRA's learning rates"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="seeds of each (default: 42)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results so far; read, and added to")
    return parser


def run(steps: int, rate: str, seed: int, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the recipe once.

    Args:
        steps: How many steps to train.
        rate: The learning rate.
        seed: Fixes the connections or LoRA's first values, and the order of the data.
        overrides: Settings of the recipe, as on the command line.

    Returns:
        Losses before and after, and how many values were trained.
    """
    settings = (f"training.max_steps={steps}", f"training.learning_rate={rate}", f"seed={seed}")
    metrics = finetuned(RECIPE, [*overrides, *settings])
    return {
        "before": metrics["before"]["loss"],
        "after": metrics["after"]["loss"],
        "trained": metrics["trained_parameters"],
    }


def measure(arguments: argparse.Namespace, best: dict[str, float]) -> Iterator[tuple[str, ...]]:
    """Run what is missing, each method at each of its rates with each seed.

    Args:
        arguments: The command line.
        best: The lowest mean loss of each method is put here, by its name.

    Yields:
        tuple[str, ...]: A row of the table, when its last seed is done.
    """
    found = read_results(arguments.json)
    runs = [("QPaCA", rate, PACA) for rate in arguments.paca_rates]
    runs += [("QPaCA chosen", rate, CHOSEN) for rate in arguments.chosen_rates]
    runs += [("QLoRA", rate, LORA) for rate in arguments.lora_rates]
    for name, rate, overrides in runs:
        results = []
        for seed in arguments.seeds:
            key = f"{name} rate={rate} steps={arguments.steps} seed={seed}"
            found[key] = found.get(key) or run(arguments.steps, rate, seed, overrides)
            write_results(arguments.json, found)
            results.append(found[key])
        first, losses = results[0], [result["after"] for result in results]
        yield name, rate, f"{first['trained']:,}", f"{first['before']:.4f}", *over_seeds(losses)
        best[name] = min(best.get(name, float("inf")), statistics.mean(losses))


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Print the table, and the ratios of the best mean losses."""
    best: dict[str, float] = {}
    print_table(_COLUMNS, measure(arguments, best), text=["by seed"])
    ratios = ", ".join(f"{name} {loss / best['QLoRA']:.4f}" for name, loss in best.items() if "QLoRA" in best)
    print(f"\n{arguments.steps} steps; held-out loss, ÷ QLoRA's: {ratios}")


if __name__ == "__main__":
    sys.exit(main())
