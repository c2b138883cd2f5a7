"""Held-out loss of QPaCA and QLoRA on the same quantized model, with about as many trained parameters.

    python benchmarks/quantized_quality.py                           60 steps each, about a quarter of an hour
    python benchmarks/quantized_quality.py --steps 30 --lora-rates 1e-3

Both run the recipe smollm2-qpaca: same NF4 base, same batches in the same order, same schedule. PaCA of rank 16 trains
as many values as LoRA of rank 8 within 2 %, and keeps the recipe's learning rate. LoRA is run at each of several
rates, and its best one on the held-out text itself counts, which favours LoRA.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from paca.training.finetune import finetune
from paca.training.recipe import find_recipe, read_recipe
from step import positive

RECIPE = "smollm2-qpaca"
LORA = ("method.name=lora", "method.r=8", "method.lora_alpha=16")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/quantized_quality.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=positive, default=60, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--paca-rates", nargs="+", default=["5e-3"], metavar="RATE", help="PaCA's learning rates")
    parser.add_argument(
        "--lora-rates", nargs="+", default=["5e-4", "1e-3", "2e-3"], metavar="RATE", help="LoRA's learning rates"
    )
    return parser


def run(folder: Path, steps: int, rate: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the recipe once.

    Args:
        folder: Where the run writes to.
        steps: How many steps to train.
        rate: The learning rate.
        overrides: Settings of the recipe, as on the command line.

    Returns:
        What metrics.json holds.
    """
    settings = (f"training.max_steps={steps}", f"training.learning_rate={rate}", "training.disable_tqdm=true")
    recipe = read_recipe(find_recipe(RECIPE), [*overrides, *settings])
    return finetune(dataclasses.replace(recipe, output_dir=str(folder)))


def row(name: str, rate: str, metrics: dict[str, Any]) -> str:
    """One line of the table."""
    before, after = metrics["before"]["loss"], metrics["after"]["loss"]
    return f"| {name} | {rate} | {metrics['trained_parameters']:,} | {before:.4f} | {after:.4f} |"


def main(argv: list[str] | None = None) -> int:
    """Run, and print the table and the ratio of the best losses.

    Args:
        argv: The arguments; those of the command line when left out.

    Returns:
        The exit status.
    """
    arguments = build_parser().parse_args(argv)
    runs = [("QPaCA", rate, ()) for rate in arguments.paca_rates]
    runs += [("QLoRA", rate, LORA) for rate in arguments.lora_rates]
    best: dict[str, float] = {}
    print("| method | learning rate | trained | loss before | loss after |\n| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, rate, overrides in runs:
            metrics = run(Path(folder) / f"{name}-{rate}", arguments.steps, rate, overrides)
            print(row(name, rate, metrics), flush=True)
            best[name] = min(best.get(name, float("inf")), metrics["after"]["loss"])
    print(f"\n{arguments.steps} steps; held-out loss, QPaCA / QLoRA: {best['QPaCA'] / best['QLoRA']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
