"""The output folder of a run: what lies where, whether a run is in progress in it, and what may be done with it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base import yaml
from paca.workbench.base.files import discard, is_ours, write_json, write_text
from paca.workbench.base.processes import rank
from paca.workbench.base.schema import describe_difference
from paca.workbench.models.adapter_files import ADAPTER as ADAPTER
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.training.checkpoints import checkpoint_folders
from paca.workbench.training.inputs import INPUTS

WRITER = "run of paca"
RECIPE = "recipe.yaml"  # written first: a run was started
PROCESSES = ".processes.json"  # on how many processes, if more than one
METRICS = "metrics.json"  # written last: it is finished
BEFORE = "before.json"
MERGED = "merged"
CURVE = "loss.png"
MISTAKES = "misclassified.png"
MICRO_BATCH = ".micro_batch.json"  # how many sequences fit at once, if fewer than the recipe asks for
LOGS = "runs"  # TensorBoard's
CARD = "README.md"  # TRL's model card
BATCH_KEYS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}  # with Trainer's defaults


def open_run(folder: Path, recipe: Recipe, resume: bool = False, overwrite: bool = False, processes: int = 1) -> bool:
    """Make a folder ready for a run, or refuse; whether the run to be resumed is finished already.

    `resume` starts the run if none was started there, and allows another number of processes at the same global batch;
    `overwrite` deletes an earlier run. A PacaError if the folder holds a run and neither flag says what to do, another
    recipe's run, or something else.
    """
    # A run writes a README.md and deletes old checkpoints, so it must not share a folder with anything else.
    begun, finished = is_ours(folder, RECIPE, WRITER), (folder / METRICS).exists()
    if begun and resume:
        _check_same_recipe(folder, recipe, processes)
        return finished
    if begun and not overwrite:
        raise PacaError(_refusal(folder, finished))
    if begun:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if processes > 1:
        write_json(folder / PROCESSES, processes)
    write_text(folder / RECIPE, yaml.dump(recipe.to_dict()))
    return False


@contextlib.contextmanager
def cleared_if_refused(folder: Path) -> Iterator[None]:
    """Where a run is refused with nothing measured, leave no trace of it: the mended command needs no --overwrite."""
    try:
        yield
    except PacaError:
        if rank() == 0 and not (folder / BEFORE).exists() and not checkpoint_folders(folder):
            _clear(folder)
        raise


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read metrics.json of a finished run."""
    metrics: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return {**metrics, "adapter": str(folder / ADAPTER)}  # the folder may have been moved


def _global_batch(recipe: Mapping[str, Any], processes: int) -> int:
    """How many sequences one optimizer step takes on CPUs, and on GPUs with one process each."""
    size, accumulated = (recipe.get("training", {}).get(key, default) for key, default in BATCH_KEYS.items())
    return size * accumulated * processes


def _clear(folder: Path) -> None:
    # In this order, a deletion that is interrupted leaves what looks like an unfinished run, and can be repeated.
    for name in (METRICS, PROCESSES, INPUTS, MICRO_BATCH, BEFORE, ADAPTER, MERGED, CURVE, MISTAKES, LOGS, CARD):
        discard(folder / name)
    for checkpoint in checkpoint_folders(folder):
        discard(checkpoint)
    discard(folder / RECIPE)


def _refusal(folder: Path, finished: bool) -> str:
    if finished:
        return (
            f"The output folder {str(folder)!r} holds a finished run. Add --overwrite to replace it, or write "
            "elsewhere with --output DIR."
        )
    return (
        f"The output folder {str(folder)!r} holds a run that is not finished. Add --resume to continue from its last "
        "checkpoint, --overwrite to start again, or write elsewhere with --output DIR."
    )


def _check_same_recipe(folder: Path, recipe: Recipe, processes: int) -> None:
    started_with = yaml.parse((folder / RECIPE).read_text(encoding="utf-8"))
    wanted = recipe.to_dict()
    started_on = json.loads((folder / PROCESSES).read_text()) if (folder / PROCESSES).exists() else 1
    before, now = (_global_batch(*run) for run in ((started_with, started_on), (wanted, processes)))
    if before != now:
        raise PacaError(
            f"The run in {str(folder)!r} takes {before} sequences per step ({started_on} processes when it was "
            f"started), this launch would take {now} ({processes} processes). Resume with as many: set "
            "training.per_device_train_batch_size or training.gradient_accumulation_steps so that their product "
            f"times {processes} is {before}."
        )
    same = {key: started_with.get("training", {}).get(key) for key in BATCH_KEYS}
    training = {key: value for key, value in {**wanted["training"], **same}.items() if value is not None}
    differences = describe_difference(started_with, {**wanted, "training": training})
    if differences:
        raise PacaError(
            f"The run in {str(folder)!r} was started with another recipe: {'; '.join(differences)}. Resume with the "
            "same recipe, or add --overwrite in place of --resume to start again."
        )
