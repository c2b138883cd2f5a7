"""Runs a recipe, whatever its task is: where each task's trainer, run and summary are."""

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.workbench.recipe.recipe import Recipe
from paca.workbench.recipe.tasks import IMAGES, TEXT
from paca.workbench.training.interruptions import failed_writes_explained


@dataclass(frozen=True)
class Task:
    """Where the functions of one kind of fine-tuning are, as `module:function`.

    They are looked up when they are called, because each brings the libraries of its task along.

    Args:
        run: Runs a recipe: `(recipe, resume, overwrite, doctor)` to what metrics.json holds.
        trainer: Makes the `Trainer` of a recipe, its model adapted, without a run; and tells what text was encoded
            to, None for images.
        closing_lines: Sums a run up, from what metrics.json holds.
    """

    run: str
    trainer: str
    closing_lines: str


TASKS = {
    TEXT: Task(
        run="paca.workbench.training.text:finetune_text",
        trainer="paca.workbench.training.text:text_trainer",
        closing_lines="paca.workbench.training.report:closing_lines",
    ),
    IMAGES: Task(
        run="paca.workbench.training.images:finetune_images",
        trainer="paca.workbench.training.images:image_trainer",
        closing_lines="paca.workbench.vision.report:closing_lines",
    ),
}


def finetune(recipe: Recipe, resume: bool = False, overwrite: bool = False, doctor: bool = True) -> dict[str, Any]:
    """Run a recipe, whatever its task is.

    Args:
        recipe: What to run; `recipe.read_recipe` makes it from a file.
        resume: Go on from the last checkpoint of an interrupted run; a finished one is only reported again.
        overwrite: Replace what the output folder holds.
        doctor: Examine and rehearse the run before its first step.

    Returns:
        What metrics.json holds.

    Raises:
        PacaError: If the data, the model or the output folder do not allow the run.
    """
    with failed_writes_explained(Path(recipe.output_dir)):
        metrics: dict[str, Any] = pkgutil.resolve_name(TASKS[recipe.task].run)(recipe, resume, overwrite, doctor)
    return metrics


def trainer_of(recipe: Recipe) -> tuple[Any, Any]:
    """Make the trainer of a recipe without a run.

    Args:
        recipe: Names model, method and data.

    Returns:
        A `Trainer` whose model bears the adapter; and what text was encoded to, None for images.
    """
    trainer: tuple[Any, Any] = pkgutil.resolve_name(TASKS[recipe.task].trainer)(recipe)
    return trainer


def closing_lines(task: str, metrics: Mapping[str, Any]) -> list[str]:
    """Sum up a run.

    Args:
        task: The recipe's.
        metrics: What metrics.json holds.

    Returns:
        Lines to print.
    """
    lines: list[str] = pkgutil.resolve_name(TASKS[task].closing_lines)(metrics)
    return lines
