"""Counts the changes to updates, where no columns stay in a weight from a forward to its backward.

Backward then tells by the counts alone whether the columns would be others now.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from .update import ColumnUpdate


def versions(updates: tuple[ColumnUpdate, ...]) -> list[tuple[int, int]]:
    """Counts of the changes to the updates' parameters: those in place, and optimizer steps."""
    deltas = [update.delta for update in updates]
    return [(0 if delta.is_inference() else delta._version, _STEPS.setdefault(delta, 0)) for delta in deltas]


# A fused optimizer step changes parameters in place and does not count it.
_STEPS: Any = WeakIdKeyDictionary()


@torch.compiler.disable
def _count_steps(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if _STEPS:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in _STEPS:
                    _STEPS[parameter] += 1


register_optimizer_step_post_hook(_count_steps)
