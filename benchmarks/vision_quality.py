"""Test accuracy of PaCA beside full fine-tuning: EfficientNet-Lite0, pretrained on ImageNet, learns CIFAR-10.

    python benchmarks/vision_quality.py --data cifar10.npz --json quality.json
    python benchmarks/vision_quality.py --data cifar10.npz --json again.json --rates full=1e-3 paca=1e-3 --seeds 0

Both methods have the same images, steps and schedule, and each its own learning rate: the one of three that does best
on a tenth of the training images, which are then trained on as well; `--rates` names them instead. Every run is
written to the JSON file when it is done, and is not repeated: a benchmark that was cut short goes on where it stopped.
Needs the packages of `paca-peft[vision]`; the file holds `train_images`, `train_labels`, `test_images`, `test_labels`
and `class_names`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from benchmark import add_numbers, benchmark, make_parser, print_table, read_results, surroundings, write_results
from paca.workbench.base.progress import quiet_libraries
from paca.workbench.recipe.recipe import DataSection, MethodSection, ModelSection, Recipe
from paca.workbench.training.images import make_trainer
from paca.workbench.training.report import count_parameters
from paca.workbench.vision.arguments import image_training_arguments
from paca.workbench.vision.data import ImageData, read_data
from paca.workbench.vision.measure import answer
from paca.workbench.vision.method import with_method
from paca.workbench.vision.models import EFFICIENTNET_LITE0, load_classifier, pixel_format
from paca.workbench.vision.section import ImagesSection

FULL = "full"
LEARNING_RATES = {FULL: (3e-4, 1e-3, 3e-3), "paca": (1e-3, 3e-3, 1e-2)}
CHOOSING, TESTING = "choosing", "testing"


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        method: `full` or `paca`.
        learning_rate: Its peak.
        seed: Of the new head, the order of the images, how they are varied, and PaCA's connections.
        purpose: `choosing` a learning rate on images held out from training, or `testing`.
    """

    method: str
    learning_rate: float
    seed: int
    purpose: str

    @property
    def key(self) -> str:
        """A name for the JSON file."""
        return f"{self.purpose} {self.method} {self.learning_rate:g} seed {self.seed}"


def recipe_of(run: Run, arguments: argparse.Namespace, folder: str) -> Recipe:
    """Spell a run as a recipe.

    Args:
        run: The run.
        arguments: The command line's.
        folder: Where Trainer may write.

    Returns:
        The recipe; full fine-tuning leaves its method out.
    """
    data = {"eval": arguments.data} if run.purpose == TESTING else {"holdout_every": 10}
    frozen = "train" if run.method == FULL else "frozen"
    config = {"r": arguments.rank, "target_modules": r".*\.conv_\w+", "clamp_rank": True, "random_seed": run.seed}
    return Recipe(
        model=ModelSection(EFFICIENTNET_LITE0, "float32"),
        data=DataSection(train=arguments.data, eval_limit=arguments.eval_limit, **data),
        output_dir=folder,
        method=MethodSection("paca", config),
        training={
            "num_train_epochs": arguments.epochs,
            "max_steps": arguments.max_steps,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 100,
            "learning_rate": run.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 30,
            "save_strategy": "no",
            "logging_steps": 25,
            "dataloader_drop_last": True,
        },
        seed=run.seed,
        task="image-classification",
        images=ImagesSection(size=arguments.size, augment="flip", batch_norm=frozen),
    )


def train_and_measure(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one run.

    Args:
        run: Which.
        arguments: The command line's.

    Returns:
        Accuracy, loss, seconds of processor time, and how much was trained.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        recipe = recipe_of(run, arguments, folder)
        data = read_data(recipe.data, recipe.images)
        set_seed(run.seed)
        started = time.process_time()
        trainer = make_run(run, recipe, data)
        set_seed(run.seed)
        trainer.train()
        trained_for = time.process_time() - started
        answers = answer(trainer)
        counted = count_parameters(trainer.model)
    return {
        **asdict(run),
        "accuracy": answers.accuracy,
        "loss": answers.loss,
        "images": len(answers.labels),
        "train_cpu_seconds": trained_for,
        "cpu_seconds": time.process_time() - started,
        "trained_parameters": counted.trained,
        "training_loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def make_run(run: Run, recipe: Recipe, data: ImageData) -> Any:
    """Make the trainer of a run."""
    classes = data.train.classes
    model = load_classifier(recipe.model.name, classes, recipe.model.dtype)
    pixels = pixel_format(model, recipe.images.size)
    if run.method != FULL:
        model = with_method(model, recipe.method, recipe.images.batch_norm, len(classes))
    training = image_training_arguments(recipe.training, recipe.output_dir, recipe.seed)
    return make_trainer(recipe, training, model, data, pixels)


def best_rate(done: dict[str, dict[str, Any]], method: str) -> float:
    """The learning rate that did best on the images held out from training."""
    tried = [run for run in done.values() if run["purpose"] == CHOOSING and run["method"] == method]
    return max(tried, key=lambda run: run["accuracy"])["learning_rate"]


def next_run(
    done: dict[str, dict[str, Any]], methods: list[str], seeds: list[int], rates: dict[str, float]
) -> Run | None:
    """The first run that is not done yet; None when all are."""
    choosing = [
        Run(method, rate, 0, CHOOSING) for method in methods if method not in rates for rate in LEARNING_RATES[method]
    ]
    for run in choosing:
        if run.key not in done:
            return run
    chosen = {method: rates.get(method) or best_rate(done, method) for method in methods}
    testing = (Run(method, chosen[method], seed, TESTING) for seed in seeds for method in methods)
    return next((run for run in testing if run.key not in done), None)


def given_rate(text: str) -> tuple[str, float]:
    """Read `METHOD=RATE`."""
    method, _, rate = text.partition("=")
    if method not in LEARNING_RATES:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected METHOD=RATE with a method of {', '.join(LEARNING_RATES)}"
        )
    return method, float(rate)


def rows(done: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The test accuracies of each method that has any."""
    for method in LEARNING_RATES:
        runs = [run for run in done.values() if run["purpose"] == TESTING and run["method"] == method]
        if runs:
            accuracies = [100 * run["accuracy"] for run in runs]
            yield (
                method,
                f"{runs[0]['learning_rate']:g}",
                ", ".join(f"{accuracy:.2f}" for accuracy in accuracies),
                f"{statistics.mean(accuracies):.2f}",
                f"{runs[0]['trained_parameters']:,}",
                f"{statistics.mean(run['cpu_seconds'] for run in runs):.0f}",
            )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--data", required=True, metavar="FILE.npz", help="training and test images")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="what is done, and is added to")
    parser.add_argument("--methods", nargs="+", choices=LEARNING_RATES, default=list(LEARNING_RATES))
    parser.add_argument(
        "--rates", nargs="+", type=given_rate, default=[], metavar="METHOD=RATE", help="learning rates that are known"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add_numbers(parser, size=(96, "of the images in pixels"), rank=(32, "of PaCA"))
    parser.add_argument("--epochs", type=float, default=3, help="(default: %(default)s)")
    parser.add_argument("--most-runs", type=int, default=100, help="do at most so many runs this time")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop each run early, to try the benchmark out")
    parser.add_argument("--eval-limit", type=int, help="evaluate so many images only, to try the benchmark out")
    return parser


@benchmark(build_parser)
def main(arguments: argparse.Namespace) -> None:
    """Do the runs that are not done yet, and print the table."""
    result = {"runs": {}} | read_results(arguments.json) | surroundings()
    result["settings"] = {key: getattr(arguments, key) for key in ("size", "epochs", "rank", "max_steps")}
    done: dict[str, dict[str, Any]] = result["runs"]
    for _ in range(arguments.most_runs):
        run = next_run(done, arguments.methods, arguments.seeds, dict(arguments.rates))
        if run is None:
            break
        print(run.key, file=sys.stderr, flush=True)
        done[run.key] = train_and_measure(run, arguments)
        write_results(arguments.json, result)
    columns = ("method", "learning rate", "test accuracy, each seed", "mean", "trained", "CPU s per run")
    print_table(columns, rows(done), text=["test accuracy, each seed"])


if __name__ == "__main__":
    sys.exit(main())
