"""Finds the last checkpoint that was written to its end.

Trainer writes a checkpoint's files one after another, the trainer's state last, so a process that is killed leaves a
folder that only looks like a checkpoint.
"""

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from paca.training.files import discard

# What resuming reads, in the order of writing. RNG states are named per process where there are several.
NEEDED = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth")
STATE = "trainer_state.json"


def checkpoint_folders(run: Path) -> list[Path]:
    """List a run's checkpoint folders, whole or not, the oldest first.

    Args:
        run: The run's output folder.

    Returns:
        Folders named `checkpoint-N`, by N.
    """
    named = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in run.iterdir() if path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def is_complete(checkpoint: Path) -> bool:
    """Tell whether a run can go on from a checkpoint.

    Args:
        checkpoint: A folder `checkpoint-N`.

    Returns:
        Whether all files are there and none is cut short.
    """
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = [sorted(checkpoint.glob(pattern)) for pattern in NEEDED]
    return all(files) and all(_is_whole(path) for found in files for path in found)


def last_complete(run: Path) -> Path | None:
    """Delete what can't be gone on from, and return the newest checkpoint that can.

    Args:
        run: The run's output folder.

    Returns:
        A folder `checkpoint-N`, or None when there is no complete one.
    """
    for checkpoint in reversed(checkpoint_folders(run)):
        if is_complete(checkpoint):
            return checkpoint
        discard(checkpoint)
    return None


def _is_whole(path: Path) -> bool:
    if path.suffix in (".pt", ".pth"):  # torch.save writes zip archives, whose directory comes last
        return zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
