"""Held-out loss by selection strategy: one recipe, several seeds, mean and standard deviation.

    python benchmarks/selection.py --variants random weight                    two strategies, three seeds each
    python benchmarks/selection.py --variants fixed-8 moving-8 --steps 60      moving against fixed connections
    python benchmarks/selection.py --set data.train=train.jsonl data.eval=eval.jsonl data.holdout_every=null
    python benchmarks/selection.py --random-weights --variants fixed-8 moving-8 --steps 400
    python benchmarks/selection.py --json results.json --show                  only the table of what was run

Every run trains the same recipe on a copy of the same base model; a seed fixes the connections and the order of the
data. All variants but LoRA's train the same number of parameters at one rank, and LoRA's at half the rank about as
many. A result is written as soon as it is there, so a benchmark that was stopped goes on where it was.
"""

import argparse
import copy
import dataclasses
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark import benchmark, make_parser, read_results, write_results
from paca.workbench.base.markdown import table as markdown_table
from paca.workbench.base.options import positive
from paca.workbench.base.progress import quiet_libraries
from paca.workbench.data.prepare import read_data
from paca.workbench.recipe.recipe import Recipe, find_recipe, read_recipe
from paca.workbench.recipe.text_arguments import training_arguments
from paca.workbench.training.held_out import evaluate
from paca.workbench.training.stages import train
from paca.workbench.training.text import Loaded, load_recipe, make_trainer
from random_llama import save_random_llama
from report import over_seeds


@dataclass(frozen=True)
class Variant:
    """What is put in the place of the recipe's method.

    Args:
        name: What the tables call it.
        description: In one line.
        method: Fields of the method's config, beside the recipe's own.
        rate: The learning rate that suits it; the recipe's own when omitted.
    """

    name: str
    description: str
    method: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None


PRETRAINED = "pretrained"
_DATA = {"selection_batches": 8}
_LARGE_CHANNELS = 5e-4  # Adam moves every value by about the rate, so where inputs are large the outputs move further
_LORA = {"name": "lora", "r": 8, "lora_alpha": 16}

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(PRETRAINED, "the base model as it is", {"r": 16}),
        Variant("random", "single connections at random, rank 16", {"r": 16}),
        Variant("runs-8", "random runs of 8 connections, rank 16", {"r": 16, "run_length": 8}),
        Variant("runs-16", "one random run of 16 connections", {"r": 16, "run_length": 16}),
        Variant("aligned", "random, one set for layers of one input, rank 16", {"r": 16, "aligned": True}),
        Variant("weight", "largest column norm, rank 16", {"r": 16, "selection": "weight"}),
        Variant("weight-smallest", "smallest column norm, rank 16", {"r": 16, "selection": "weight_smallest"}),
        Variant(
            "gradient",
            "largest accumulated gradient, rank 16",
            {"r": 16, "selection": "gradient", **_DATA},
            rate=_LARGE_CHANNELS,
        ),
        Variant(
            "activation",
            "largest input channels, rank 16",
            {"r": 16, "selection": "activation", **_DATA},
            rate=_LARGE_CHANNELS,
        ),
        Variant(
            "weight-activation",
            "largest column norm times input channel, rank 16",
            {"r": 16, "selection": "weight_activation", **_DATA},
            rate=_LARGE_CHANNELS,
        ),
        Variant("lora", "LoRA of rank 8", _LORA, rate=4e-3),
        *(Variant(f"fixed-{rank}", f"random, rank {rank}", {"r": rank}) for rank in (1, 2, 8)),
        *(
            Variant(f"moving-{rank}", f"random, rank {rank}, moved every 20 steps", {"r": rank, "reselect_every": 20})
            for rank in (1, 2, 8)
        ),
        Variant("moving-8-10", "random, rank 8, moved every 10 steps", {"r": 8, "reselect_every": 10}),
        Variant(
            "moving-8-warm",
            "as moving-8, the learning rate rising over 5 steps after a move",
            {"r": 8, "reselect_every": 20, "reselect_warmup": 5},
        ),
    )
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__, variants=VARIANTS)
    parser.add_argument("--recipe", default="smollm2-python-reference", help="a recipe (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=positive, default=60, help="training steps of each run (default: %(default)s)")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="key=value",
        help="further keys of the recipe; training.learning_rate replaces the variants' own",
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="a small Llama of random weights in place of the recipe's model"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="results so far; read, and added to")
    parser.add_argument("--show", action="store_true", help="run nothing, print the table of the file")
    parser.add_argument("--most-runs", type=positive, help="stop after so many new runs")
    return parser


def recipe_of(name: str, variant: Variant, seed: int, steps: int, settings: list[str], folder: str) -> Recipe:
    """The recipe of one run.

    Args:
        name: The recipe that it is made of.
        variant: Its method.
        seed: Fixes connections and order of the data.
        steps: How many steps to train.
        settings: Further keys, `key=value`.
        folder: Where it may write to.

    Returns:
        The recipe.
    """
    steps = 0 if variant.name == PRETRAINED else steps
    keys = [f"training.max_steps={steps}", "training.save_strategy=no", "training.disable_tqdm=true", f"seed={seed}"]
    rate = [] if variant.rate is None else [f"training.learning_rate={variant.rate}"]
    recipe = read_recipe(find_recipe(name), [*keys, *rate, *settings], folder)
    config = {**recipe.method.config, "random_seed": seed, **variant.method}
    method_name = config.pop("name", recipe.method.name)
    if method_name != "paca":
        config.pop("random_seed")
    return dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, name=method_name, config=config))


def run_once(recipe: Recipe, loaded: Loaded) -> dict[str, Any]:
    """Train one recipe on a copy of the model, and evaluate it.

    Args:
        recipe: What to train; the model is only evaluated if it has no steps.
        loaded: The base model and the data of all runs.

    Returns:
        Held-out loss, training losses, trained parameters, seconds.
    """
    started = time.perf_counter()
    arguments = training_arguments(recipe.training, recipe.output_dir, recipe.seed)
    trainer = make_trainer(recipe, arguments, copy.deepcopy(loaded.model), loaded.tokenizer, loaded.data)
    if arguments.max_steps:
        train(trainer, recipe.seed, None)
    measured = evaluate(trainer)
    return {
        "loss": measured.loss,
        "tokens": measured.tokens,
        "train_losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "trained": sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad),
        "seconds": round(time.perf_counter() - started, 1),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def key_of(arguments: argparse.Namespace, variant: str, seed: int) -> str:
    """What a run's result is filed under."""
    return " ".join([_title(arguments), *arguments.set, f"steps={arguments.steps}", variant, f"seed={seed}"])


def table(arguments: argparse.Namespace, results: dict[str, Any]) -> str:
    """Mean and standard deviation of the held-out loss over the seeds, by variant.

    Args:
        arguments: The command line.
        results: What was measured, by key.

    Returns:
        A Markdown table.
    """
    rows = []
    for name in arguments.variants:
        keys = [key_of(arguments, name, seed) for seed in arguments.seeds]
        found = [results[key] for key in keys if key in results]
        if found:
            rows.append((name, f"{found[0]['trained']:,}", *over_seeds([result["loss"] for result in found])))
    return markdown_table(("variant", "trained", "held-out loss, mean", "deviation", "by seed"), rows, ["by seed"])


def _title(arguments: argparse.Namespace) -> str:
    return f"{arguments.recipe} random-weights" if arguments.random_weights else str(arguments.recipe)


def _load(recipe: Recipe) -> Loaded:
    arguments = training_arguments(recipe.training, recipe.output_dir, recipe.seed)
    return load_recipe(recipe, read_data(recipe.data), arguments)


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Run what is missing, and print the table."""
    results = read_results(arguments.json)
    jobs = [(name, seed) for seed in arguments.seeds for name in arguments.variants]
    jobs = [(name, seed) for name, seed in jobs if name != PRETRAINED or seed == arguments.seeds[0]]
    missing = [job for job in jobs if key_of(arguments, *job) not in results]
    loaded = None
    for done, (name, seed) in enumerate([] if arguments.show else missing[: arguments.most_runs]):
        print(f"{done + 1} of {len(missing)}: {name}, seed {seed}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder, quiet_libraries():
            model = [f"model.name={save_random_llama(Path(folder) / 'model')}"] if arguments.random_weights else []
            settings = [*model, *arguments.set]
            recipe = recipe_of(arguments.recipe, VARIANTS[name], seed, arguments.steps, settings, folder)
            loaded = loaded or _load(recipe)
            results[key_of(arguments, name, seed)] = run_once(recipe, loaded)
        write_results(arguments.json, results)
    described = ", ".join([f"{arguments.steps} steps", *arguments.set])
    print(f"{_title(arguments)}, {described}, seeds {', '.join(map(str, arguments.seeds))}\n")
    print(table(arguments, results))


if __name__ == "__main__":
    sys.exit(main())
