"""Runs recipes in forked processes, each killed with SIGKILL, again and again until they are finished.

    python -m tests.workbench.training.kill_driver PLANS

PLANS is JSON: a list of pairs, a recipe's path and a list with one entry per process, a number of seconds or the name
of a moment in `MOMENTS`. After its last entry a run is left alone. What each process did is printed as JSON.

A process of its own does this, since forking is safe only where no thread has been started; the libraries are imported
once, before the first fork.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.forks import fork_and_kill

from paca.workbench.base import files
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training import stages, text
from paca.workbench.training.run import finetune

torch.set_num_threads(1)


def die() -> None:
    """End this process as if the power had failed: no `finally`, no `atexit`, no buffers written."""
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(owner: Any, name: str, call: int, act: Callable[..., None] = lambda *_: die()) -> None:
    """Have the `call`-th call of a function do something first."""
    original, count = getattr(owner, name), 0

    def replacement(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            act(*args)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def write_half(_: Any, path: Any) -> None:
    """Leave a file that is cut short, and die."""
    Path(path).write_bytes(b"{" * 100)
    die()


# Each is set up in a process that begins or resumes a run; checkpoints are written every two steps of eight.
MOMENTS: dict[str, Callable[[], None]] = {
    "before the first evaluation is written": lambda: before_call(stages, "write_json", 1),
    "before the first step": lambda: before_call(transformers.Trainer, "training_step", 1),
    "between two checkpoints": lambda: before_call(transformers.Trainer, "training_step", 4),
    "before anything of a checkpoint": lambda: before_call(transformers.Trainer, "_save_checkpoint", 2),
    "after a checkpoint's adapter": lambda: before_call(transformers.Trainer, "_save_optimizer_and_scheduler", 1),
    "inside the optimizer's file": lambda: before_call(torch, "save", 3, write_half),
    "before the random state": lambda: before_call(transformers.Trainer, "_save_rng_state", 1),
    "inside the trainer's state": lambda: before_call(transformers.TrainerState, "save_to_json", 1, write_half),
    "before old checkpoints are deleted": lambda: before_call(transformers.trainer, "rotate_checkpoints", 1),
    "inside the adapter's folder": lambda: before_call(files, "sync_folder", 1),
    "before the picture": lambda: before_call(text, "draw_loss_curve", 1),
    "before metrics.json is in place": lambda: before_call(Path, "replace", 2, lambda *_: die()),
}


def count_steps(path: Path) -> None:
    """Add a character to a file whenever a training step begins: what a killed process did can't be asked later."""
    original = transformers.Trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        with path.open("a") as file:
            file.write(".")
        return original(*args, **kwargs)

    transformers.Trainer.training_step = counted


def attempt(recipe_path: str, kill: float | str | None) -> int:
    """Begin or resume the run in a process of its own, kill it as planned, and return what ended it."""

    def run() -> int:
        count_steps(Path(recipe_path).with_suffix(".steps"))
        if isinstance(kill, str):
            MOMENTS[kill]()
        finetune(read_recipe(Path(recipe_path)), resume=True)
        return 0

    return fork_and_kill(run, kill if isinstance(kill, float) else None)


def work_through(recipe_path: str, plan: list[float | str]) -> list[dict[str, Any]]:
    """Kill a run as planned, then let it finish, and return what each process did."""
    log = []
    steps = Path(recipe_path).with_suffix(".steps")
    for kill in [*plan, None]:
        steps.write_text("")
        started = time.monotonic()
        status = attempt(recipe_path, kill)
        seconds = time.monotonic() - started
        log.append({"kill": kill, "status": status, "seconds": seconds, "steps": len(steps.read_text())})
    return log


if __name__ == "__main__":
    print(json.dumps([work_through(*pair) for pair in json.loads(sys.argv[1])]))
