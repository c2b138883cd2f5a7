"""What the `training` keys of every task have in common: arguments of transformers' `Trainer`."""

from collections.abc import Mapping
from typing import Any

# Keys of `TrainingArguments` that would change nothing, or break resuming, and what to type instead.
REFUSED_KEYS = {
    "output_dir": "set the recipe's own output_dir, or pass --output DIR",
    "seed": "set the recipe's own seed",
    "resume_from_checkpoint": "pass --resume",
    "save_only_model": "resuming needs the optimizer's state; use save_total_limit to save space",
}


def usual_arguments(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that hold where a recipe's `training` keys do not set them."""
    import torch

    return {
        # TRL's default is bfloat16 everywhere, also on CPUs, where it is slower than float32.
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not training.get("fp16", False),
        "report_to": "none",
        "save_total_limit": 2,
        "dataloader_pin_memory": torch.cuda.is_available(),  # elsewhere it only warns
    }
