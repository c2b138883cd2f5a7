"""Finds the last checkpoint that was written to its end.

Trainer writes a checkpoint's files one after another, the trainer's state last, so a process that is killed leaves a
folder that only looks like a checkpoint.
"""

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from paca.workbench.base.files import discard

# What resuming reads, in the order of writing. RNG states are named per process where there are several.
NEEDED = ("scheduler.pt", "rng_state*.pth")
WHOLE = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt")
MODEL_SHARDS, OPTIMIZER_SHARDS = "pytorch_model_fsdp_0", "optimizer_0"  # folders that accelerate writes under FSDP2
STATE = "trainer_state.json"
ALL_RANKS = "all_ranks.json"  # with several processes, written when the last of them has written its part


def checkpoint_folders(run: Path) -> list[Path]:
    """List a run's folders named `checkpoint-N`, whole or not, by N."""
    named = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in run.iterdir() if path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def is_complete(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are there and none is cut short, so that a run can be resumed from it."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if any(checkpoint.glob("rng_state_*.pth")) and not (checkpoint / ALL_RANKS).exists():
        return False
    shards = [folder / ".metadata" for folder in (checkpoint / MODEL_SHARDS, checkpoint / OPTIMIZER_SHARDS)]
    files = [sorted(checkpoint.glob(pattern)) for pattern in (*NEEDED, *(() if is_sharded(checkpoint) else WHOLE))]
    written = all(files) and all(_is_whole(path) for found in files for path in found)
    return written and (not is_sharded(checkpoint) or all(path.exists() for path in shards))


def is_sharded(checkpoint: Path) -> bool:
    """Whether FSDP2 wrote a checkpoint, each rank its part."""
    return (checkpoint / MODEL_SHARDS).is_dir()


def last_complete(run: Path, discard_later: bool = True) -> Path | None:
    """Find the newest complete checkpoint of a run; by default, delete the incomplete ones after it."""
    for checkpoint in reversed(checkpoint_folders(run) if run.is_dir() else []):
        if is_complete(checkpoint):
            return checkpoint
        if discard_later:
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
