"""The tasks that a recipe can have: what checks its keys, what runs it, and what tells how the run went.

The libraries of a task are imported when it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paca.workbench.recipe.tasks import IMAGES, TEXT, _image_problems, _text_problems


@dataclass(frozen=True)
class Task:
    """One kind of fine-tuning.

    Args:
        name: What a recipe's `task` says.
        description: One line.
        training_problems: Says what is wrong with the recipe's `training` keys.
        run: Runs a recipe: `(recipe, resume, overwrite, doctor)` to what metrics.json holds.
        trainer: Makes the `Trainer` of a recipe, its model adapted, without a run; and tells what text was encoded
            to, None for images.
        closing_lines: Sums a run up, from what metrics.json holds.
    """

    name: str
    description: str
    training_problems: Callable[[Mapping[str, Any]], list[str]]
    run: Callable[[Any, bool, bool, bool], dict[str, Any]]
    trainer: Callable[[Any], tuple[Any, Any]]
    closing_lines: Callable[[Mapping[str, Any]], list[str]]


def _run_text(recipe: Any, resume: bool, overwrite: bool, doctor: bool) -> dict[str, Any]:
    from paca.workbench.training.text import finetune_text

    return finetune_text(recipe, resume, overwrite, doctor)


def _text_trainer(recipe: Any) -> tuple[Any, Any]:
    from paca.workbench.training.text import text_trainer

    return text_trainer(recipe)


def _text_lines(metrics: Mapping[str, Any]) -> list[str]:
    from paca.workbench.training.report import closing_lines

    return closing_lines(metrics)


def _run_images(recipe: Any, resume: bool, overwrite: bool, doctor: bool) -> dict[str, Any]:
    from paca.workbench.training.images import finetune_images

    return finetune_images(recipe, resume, overwrite, doctor)


def _image_trainer(recipe: Any) -> tuple[Any, Any]:
    from paca.workbench.training.images import image_trainer

    return image_trainer(recipe), None


def _image_lines(metrics: Mapping[str, Any]) -> list[str]:
    from paca.workbench.vision.report import closing_lines

    return closing_lines(metrics)


TASKS = {
    task.name: task
    for task in (
        Task(
            TEXT,
            "a causal language model on text or conversations",
            _text_problems,
            _run_text,
            _text_trainer,
            _text_lines,
        ),
        Task(IMAGES, "an image classifier", _image_problems, _run_images, _image_trainer, _image_lines),
    )
}
