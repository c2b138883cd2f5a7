"""The output folder of a run: what lies where, whether a run is going on in it, and what may be done with it."""

import json
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.training import yaml_scalars
from paca.training.checkpoints import checkpoint_folders
from paca.training.files import discard, write_text
from paca.training.recipe import Recipe, describe_difference

RECIPE = "recipe.yaml"  # written first: a run was started
METRICS = "metrics.json"  # written last: it is finished
BEFORE = "before.json"
ADAPTER = "adapter"
MERGED = "merged"
CURVE = "loss.png"
MISTAKES = "misclassified.png"
CARD = "README.md"  # TRL's model card


def open_run(folder: Path, recipe: Recipe, resume: bool = False, overwrite: bool = False) -> bool:
    """Make a folder ready for a run, or refuse.

    Args:
        folder: The output folder.
        recipe: What is going to be run.
        resume: Go on with a run that was interrupted. Where none was begun, begin.
        overwrite: Delete what an earlier run left there.

    Returns:
        Whether the run that is to be resumed is finished already.

    Raises:
        PacaError: If the folder holds a run and neither flag says what to do, if another recipe began that run, or if
            the folder holds something else.
    """
    _check_ours(folder)
    begun, finished = (folder / RECIPE).exists(), (folder / METRICS).exists()
    if begun and resume:
        _check_same_recipe(folder, recipe)
        return finished
    if begun and not overwrite:
        raise PacaError(_refusal(folder, finished))
    if begun:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RECIPE, yaml_scalars.dump(recipe.to_dict()))
    return False


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read what a finished run measured.

    Args:
        folder: Its output folder.

    Returns:
        What metrics.json holds.
    """
    metrics: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return {**metrics, "adapter": str(folder / ADAPTER)}  # the folder may have been moved


def _check_ours(folder: Path) -> None:
    """A run writes a README.md and deletes old checkpoints, so it must not share a folder with anything else."""
    if folder.exists() and not folder.is_dir():
        raise PacaError(f"The output folder {str(folder)!r} is a file; name a folder with --output DIR.")
    if not folder.exists() or (folder / RECIPE).exists():
        return
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others:
        raise PacaError(
            f"The output folder {str(folder)!r} holds files that no run of paca wrote ({', '.join(others[:3])}"
            f"{', …' if len(others) > 3 else ''}); name a new or an empty folder with --output DIR."
        )


def _clear(folder: Path) -> None:
    # In this order, a deletion that is interrupted leaves what looks like an unfinished run, and can be repeated.
    for name in (METRICS, BEFORE, ADAPTER, MERGED, CURVE, MISTAKES, CARD):
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
        f"The output folder {str(folder)!r} holds a run that is not finished. Add --resume to go on from its last "
        "checkpoint, --overwrite to start again, or write elsewhere with --output DIR."
    )


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    started_with = yaml_scalars.parse((folder / RECIPE).read_text(encoding="utf-8"))
    differences = describe_difference(started_with, recipe.to_dict())
    if differences:
        raise PacaError(
            f"The run in {str(folder)!r} was started with another recipe: {'; '.join(differences)}. Resume with the "
            "same recipe, or add --overwrite in place of --resume to start again."
        )
