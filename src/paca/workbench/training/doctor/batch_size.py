"""A batch that does not fit into memory is split, and as many sequences go into each optimizer step as before."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from paca.errors import PacaError
from paca.workbench.base.files import write_json
from paca.workbench.training.run_folder import MICRO_BATCH


def largest_micro_batch(size: int, attempt: Callable[[int], None]) -> int:
    """Try smaller and smaller divisors of `size` until a batch fits into memory; a PacaError if none does."""
    from accelerate.utils.memory import should_reduce_batch_size

    while True:
        try:
            attempt(size)
            return size
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if size == 1:
                raise PacaError(
                    "One sequence of this recipe needs needs hardly there is. Set a smaller training.max_length, "
                    "training.gradient_checkpointing=true, model.quantization=nf4, or a smaller method.r."
                ) from error
        size = next(smaller for smaller in range(size // 2, 0, -1) if size % smaller == 0)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def set_micro_batch(trainer: Any, size: int) -> None:
    """Compute with fewer sequences at a time, and accumulate more gradients for each step.

    `size` is a divisor of what the trainer has now.
    """
    arguments = trainer.args
    arguments.gradient_accumulation_steps *= arguments.per_device_train_batch_size // size
    arguments.per_device_train_batch_size = size
    trainer._train_batch_size = arguments.train_batch_size


def follow_earlier_start(trainer: Any, folder: Path) -> None:
    """Take the micro-batch that an earlier start of the run found, since it decides which random numbers are used."""
    path = folder / MICRO_BATCH
    size = int(json.loads(path.read_text())) if path.exists() else 0
    if size and trainer.args.per_device_train_batch_size % size == 0:
        set_micro_batch(trainer, size)


def keep_for_resuming(trainer: Any, folder: Path) -> None:
    """Write the micro-batch of an examined trainer into the run's output folder."""
    write_json(folder / MICRO_BATCH, trainer.args.per_device_train_batch_size)
