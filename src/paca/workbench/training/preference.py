"""Runs a recipe whose task is preference on TRL's `DPOTrainer` or `KTOTrainer`, as `text.py` runs text.

The reference that answers are compared with is the model as it was: the same weights with the columns out, where the
recipe makes an adapter, and the adapter before training, where it goes on from one.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.workbench.base.files import write_file
from paca.workbench.data.preference import prepare_preferences
from paca.workbench.data.preference_formats import PREFERENCE_FORMATS
from paca.workbench.data.prepare import RawData, TrainingData, read_data
from paca.workbench.recipe.preference_arguments import learns_from_pairs, preference_arguments
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.training.held_out_preferences import evaluate_preferences
from paca.workbench.training.report import loss_points
from paca.workbench.training.text import inputs as inputs
from paca.workbench.training.text import load_recipe_model, load_recipe_tokenizer, make_trainer, run_trainer

LOGGED = {"accuracy_curve": "rewards/accuracies", "margin_curve": "rewards/margins"}


def prepare(recipe: Recipe) -> tuple[RawData, Any]:
    """Read a recipe's preferences, and make its `DPOConfig` or `KTOConfig`; a PacaError if the data are no good."""
    arguments = preference_arguments(recipe.all_training, recipe.output_dir, recipe.seed)
    return read_data(recipe.data, PREFERENCE_FORMATS), arguments


def load(recipe: Recipe, raw: RawData, arguments: Any) -> tuple[Any, TrainingData]:
    """Make a trainer whose model bears the adapter; and the data that it was given."""
    from paca.workbench.training.preference_trainers import LabelTrainer, PairTrainer

    tokenizer, data = encode(recipe, raw, arguments)
    model = load_recipe_model(recipe)
    if arguments.disable_dropout:
        _without_dropout(model)
    kind = PairTrainer if learns_from_pairs(recipe.training) else LabelTrainer
    return make_trainer(recipe, arguments, model, tokenizer, data, kind), data


def encode(recipe: Recipe, raw: RawData, arguments: Any) -> tuple[Any, TrainingData]:
    """Load a recipe's tokenizer, and tokenize its data."""
    tokenizer, paired = load_recipe_tokenizer(recipe), learns_from_pairs(recipe.training)
    return tokenizer, prepare_preferences(raw, recipe.data, tokenizer, arguments.max_length, recipe.seed, paired)


def _without_dropout(model: Any) -> None:
    """Switch off dropout that is a number and no layer, such as attention's, which TRL leaves as it is.

    The model would be compared with another draw of itself.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def run(recipe: Recipe, raw: RawData, arguments: Any, folder: Path, doctor: bool) -> dict[str, Any]:
    """Evaluate, train, evaluate again, and write the results into a folder that `open_run` has made ready."""
    trainer, data = load(recipe, raw, arguments)

    def draw(path: Path, metrics: dict[str, Any]) -> None:
        history = trainer.state.log_history
        metrics.update({name: loss_points(history, key) for name, key in LOGGED.items()})
        draw_preferences(path, metrics)

    return run_trainer(recipe, trainer, data, folder, doctor, lambda: evaluate_preferences(trainer), draw)


def draw_preferences(path: Path, metrics: Mapping[str, Any]) -> None:
    """Draw the loss, and the reward margin of training with the held-out one before and after, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    losses, margins = figure.subplots(1, 2)
    for axes, curves, label in (
        (losses, {"training": metrics["loss_curve"], "held out": metrics["eval_curve"]}, "loss"),
        (margins, {"training": metrics["margin_curve"]}, "reward margin, preferred over other answer"),
    ):
        for name, points in curves.items():
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    before, after = metrics["before"], metrics["after"]
    held_out = f"held out: accuracy {before['accuracy']:.1%} → {after['accuracy']:.1%}"
    margins.plot([0, metrics["steps"]], [before["margin"], after["margin"]], "o--", label=held_out)
    for axes in (losses, margins):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    recipe = metrics["recipe"]
    figure.suptitle(f"{recipe['method']['name']} on {recipe['model']['name']}")
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=150))


def closing_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Say what improved, where the adapter lies, and how to merge it."""
    before, after, held = metrics["before"], metrics["after"], metrics["held_out"]
    rose = after["accuracy"] - before["accuracy"]
    verdict = "no gain" if rose <= 0 else "improved" if rose > after["accuracy_error"] else "within the noise"
    return [
        f"{verdict}: held-out preference accuracy {before['accuracy']:.1%} -> {after['accuracy']:.1%} "
        f"± {after['accuracy_error']:.1%} ({held['sequences']} of {held['total']} held-out rows)",
        f"reward margin {before['margin']:.3f} -> {after['margin']:.3f}; the likelier answer is the preferred one in "
        f"{before['likelihood_accuracy']:.1%} -> {after['likelihood_accuracy']:.1%}; KL from the reference "
        f"{after['kl']:.4f} nats per token",
        f"adapter: {metrics['adapter']} ({metrics['trained_parameters']:,} trained parameters, "
        f"{metrics['trained_share']:.2%} of the model)",
        f"merge: paca export {shlex.quote(metrics['adapter'])} --to merged",
    ]
