"""`paca compare RECIPE.yaml`: the same work under several methods, and a report to look at."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.options import positive, several, size
from paca.workbench.cli.verb import Verb, add_recipe_arguments, recipe_of

SETTINGS = ("seeds", "match", "sweep", "sweep_steps", "points", "rounds", "memory_limit", "unrelated")
EXPERIMENTS = {"throughput": "throughput", "max_seq": "max-seq", "operations": "operations"}

EXAMPLE = """\
methods:
  frozen paca lora lora-base-dtype dora moslora miss lora-fa full qpaca qlora, and every method of PEFT by name or by
  config class, with arguments where wanted: --methods 'paca,lora(use_rslora=true),oft(oft_block_size=32,r=0)'

example:
  $ paca compare smollm2-python-reference --methods paca,lora --sweep 3 --seeds 3
  $ paca compare smollm2-python-reference training.max_steps=20 --methods paca,lora,dora --rates paca=5e-3 lora=2e-3
  $ paca compare smollm2-python-reference --max-seq --memory-limit 4GB --methods paca,lora,dora
  $ paca compare smollm2-python-reference --operations --methods paca,lora,full

Each method and seed is a unit on disk: run the same command again after an interruption, or with more methods, more
seeds or an experiment added.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca compare` takes."""
    add_recipe_arguments(parser)
    several(parser, "--methods", "METHOD", "what is compared, besides the frozen floor")
    parser.add_argument("--seeds", type=positive, metavar="N", default=1, help="runs of each method (default: 1)")
    parser.add_argument(
        "--match",
        choices=("parameters", "rank", "memory", "time"),
        default="parameters",
        help="all methods train about as many parameters as the recipe's own, have its rank, take no more memory than "
        "it, or no more time (default: %(default)s)",
    )
    several(parser, "--rates", "METHOD=RATE", "learning rates; where a method has several, they are tried")
    parser.add_argument(
        "--sweep", type=int, default=0, metavar="N", help="try N rates for each method that --rates does not name"
    )
    parser.add_argument("--sweep-steps", type=positive, metavar="N", default=20, help="steps of a try (default: 20)")
    parser.add_argument("--points", type=positive, metavar="N", default=4, help="measurements on the way (default: 4)")
    parser.add_argument(
        "--rounds", type=positive, metavar="N", default=9, help="timed steps of each method (default: 9)"
    )
    parser.add_argument("--unrelated", metavar="FILE", help="a text to show forgetting on, in place of a short story")
    parser.add_argument("--memory-limit", type=size, metavar="SIZE", help="what a step may need, such as 4GB")
    parser.add_argument("--throughput", action="store_true", help="grow the batch until memory is full; no training")
    parser.add_argument("--max-seq", action="store_true", help="find the longest sequence that fits; no training")
    parser.add_argument("--operations", action="store_true", help="count floating-point operations; no training")
    parser.add_argument(
        "--jobs", type=positive, metavar="N", default=1, help="GPUs to use; a CPU does one thing at a time"
    )
    parser.add_argument("--output", metavar="DIR", help="the report's folder (default: the recipe's, with -compare)")
    parser.add_argument("--overwrite", action="store_true", help="replace another recipe's comparison in the folder")


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print the table; 1 where every method failed, 130 after Ctrl-C."""
    comparison = _comparison(arguments)
    from paca.workbench.base.locks import locked_if_ours
    from paca.workbench.compare.folder import COMPARISON, WRITER
    from paca.workbench.data.prepare import read_data
    from paca.workbench.training.text import inputs

    folder = Path(arguments.output or f"{comparison.recipe.output_dir}-compare")
    spec = {**comparison.spec(), "data": inputs(read_data(comparison.recipe.data))}
    with locked_if_ours(folder, COMPARISON, WRITER):
        return _compare(arguments, comparison, spec, folder)


def _compare(arguments: argparse.Namespace, comparison: Any, spec: dict[str, Any], folder: Path) -> int:
    from paca.workbench.base.terminal import output_console
    from paca.workbench.compare.comparison import compare, explore
    from paca.workbench.compare.folder import HTML, open_folder
    from paca.workbench.compare.progress import Progress
    from paca.workbench.compare.report import write_report
    from paca.workbench.compare.terminal import experiment_tables, summary_tables

    open_folder(folder, spec, arguments.overwrite)
    experiments = [kind for name, kind in EXPERIMENTS.items() if getattr(arguments, name)]
    try:
        with _workers(arguments.jobs, comparison) as workers, Progress() as progress:
            if experiments:
                explore(comparison, experiments, folder, workers, progress)
            else:
                compare(comparison, folder, workers, progress)
    except KeyboardInterrupt:
        print("paca compare: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    results = write_report(folder)
    console = output_console()
    for table in experiment_tables(results, experiments) if experiments else summary_tables(results):
        console.print(table)
    print(f"report: {folder / HTML}")
    return 1 if all(row["error"] for row in results["methods"]) else 0


def _comparison(arguments: argparse.Namespace) -> Any:
    recipe = recipe_of(arguments)
    from paca.workbench.compare.choice import DEFAULT, choose_methods
    from paca.workbench.compare.comparison import Comparison
    from paca.workbench.compare.rates import read_rates
    from paca.workbench.compare.unrelated import unrelated_text
    from paca.workbench.recipe.tasks import TEXT

    if recipe.task != TEXT:
        raise PacaError(f"The recipe's task is {recipe.task}; paca compare takes recipes whose task is {TEXT}.")
    if arguments.sweep < 0:
        raise PacaError(f"--sweep {arguments.sweep}: expected how many rates to try, or 0 to try none.")
    unrelated_text(arguments.unrelated)
    methods = choose_methods(",".join(arguments.methods) or DEFAULT)
    return Comparison(
        recipe,
        tuple(methods),
        rates=read_rates(arguments.rates, [entry.label for entry in methods]),
        **{name: getattr(arguments, name) for name in SETTINGS},
    )


@contextlib.contextmanager
def _workers(jobs: int, comparison: Any) -> Iterator[list[Any]]:
    """One process for each GPU that is used; on a machine without, one in all, since units would share its cores."""
    os.environ["TQDM_DISABLE"] = "1"  # libraries' own bars, in the children too
    import torch

    from paca.workbench.compare.worker import SubprocessWorker

    number = min(jobs, torch.cuda.device_count()) if torch.cuda.is_available() else 1
    if number < jobs:
        print(f"paca compare: --jobs {jobs}, but units run {number} at a time here", file=sys.stderr)
    gpus = [str(index) if number > 1 else None for index in range(number)]
    workers = [SubprocessWorker(comparison.recipe, comparison.unrelated, gpu) for gpu in gpus]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


VERB = Verb("compare", "Train with several methods on one recipe, fairly, and report.", EXAMPLE, add_arguments, run)
