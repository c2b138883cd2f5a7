"""Runs a recipe, whatever its task is."""

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.locks import locked_if_ours
from paca.workbench.base.processes import on_main, world_size
from paca.workbench.base.progress import quiet_libraries
from paca.workbench.base.waiting import stage
from paca.workbench.recipe.data_files import file_problems
from paca.workbench.recipe.layer_names import layer_problems
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.recipe.tasks import IMAGES, PREFERENCE, TEXT
from paca.workbench.training.card import write_card
from paca.workbench.training.inputs import check_inputs
from paca.workbench.training.interruptions import failed_writes_explained
from paca.workbench.training.memory_estimate import say_memory
from paca.workbench.training.run_folder import ADAPTER, RECIPE, WRITER, cleared_if_refused, open_run, read_metrics

# The module of each task, named and not imported: it brings libraries along. In each are
#   prepare(recipe)                                to the raw data, and arguments of the `Trainer`
#   inputs(raw)                                    to what `check_inputs` compares when the run is resumed
#   load(recipe, raw, arguments)                   to the `Trainer`, its model adapted, and text as tokens
#   run(recipe, raw, arguments, folder, doctor)    to what metrics.json holds
#   closing_lines(metrics)                         to the lines that sum a run up
TASKS = {
    TEXT: "paca.workbench.training.text",
    PREFERENCE: "paca.workbench.training.preference",
    IMAGES: "paca.workbench.training.images",
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
        PacaError: If the data, the model or the output folder do not allow the run, or another run has the folder.
    """
    task, folder = _task(recipe.task), Path(recipe.output_dir)
    with failed_writes_explained(folder), contextlib.ExitStack() as held:
        raw, arguments = _prepared(task, recipe)  # first, so that a mistake in the data leaves no folder

        def opened() -> bool:
            held.enter_context(locked_if_ours(folder, RECIPE, WRITER))
            finished = open_run(folder, recipe, resume, overwrite, world_size())
            check_inputs(folder, task.inputs(raw))
            return finished

        if on_main(opened):
            return read_metrics(folder)
        with cleared_if_refused(folder), quiet_libraries():
            if doctor:
                say_memory(recipe)
            metrics: dict[str, Any] = task.run(recipe, raw, arguments, folder, doctor)
            on_main(lambda: write_card(folder / ADAPTER, recipe, metrics, task.closing_lines(metrics)[0]))
    return metrics


def trainer_of(recipe: Recipe) -> tuple[Any, Any]:
    """Make the trainer of a recipe without a run; and return what text was encoded to, None for images."""
    task = _task(recipe.task)
    raw, arguments = _prepared(task, recipe)
    with quiet_libraries():
        trainer, data = task.load(recipe, raw, arguments)
    return trainer, data


def encoded_data(recipe: Recipe) -> tuple[Any, Any, int | None]:
    """Read and tokenize the data of a text or preference recipe, without its model.

    Returns the `TrainingData`, the tokenizer, and the length that sequences are cut at.
    """
    task = _task(recipe.task)
    raw, arguments = _prepared(task, recipe)
    tokenizer, data = task.encode(recipe, raw, arguments)
    return data, tokenizer, arguments.max_length


def closing_lines(task: str, metrics: Mapping[str, Any]) -> list[str]:
    """Sum up a run of a task in a few lines, from what metrics.json holds."""
    lines: list[str] = _task(task).closing_lines(metrics)
    return lines


def _task(name: str) -> Any:
    return importlib.import_module(TASKS[name])


def _prepared(task: Any, recipe: Recipe) -> Any:
    """Read the data, and where that fails say all that is wrong with files and names rather than the first of it."""
    stage("reading the data")
    try:
        return task.prepare(recipe)
    except PacaError as error:
        found = file_problems(recipe.task, recipe.data, recipe.images)
        names = layer_problems(recipe.task, recipe.model, recipe.method)
        if len(found) < 2 and not names:
            raise
        found = [*(found or [str(error)]), *names]
        listed = "\n".join(f"  - {problem}" for problem in found)
        what = "This recipe" if names else "The data of this recipe"
        raise PacaError(f"{what} has {len(found)} problems:\n{listed}") from error
