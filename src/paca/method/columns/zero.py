"""DeepSpeed's ZeRO-1 and ZeRO-2: the optimizer steps flat copies, which are written back into the updates afterwards.

So its step hook names other tensors than the updates, and their version counters tell nothing: after any step, columns
of updates that ZeRO has copied are written anew before they are next used. ZeRO-3 takes the weights apart; columns
don't live in them then, and nothing has to be told.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .resident import keepers


def is_copied(delta: Tensor) -> bool:
    """Whether ZeRO-1 or ZeRO-2 steps a copy of an update in its place.

    Args:
        delta: The update.

    Returns:
        Whether DeepSpeed has put its mark on it.
    """
    return hasattr(delta, "_hp_mapping")


@torch.compiler.disable
def _after_step(*_: Any) -> None:
    if "deepspeed" not in sys.modules:
        return
    for keeper in keepers():
        if keeper.shown is not None and any(is_copied(term.delta) for term in keeper.shown.terms):
            keeper.invalidate()


register_optimizer_step_post_hook(_after_step)
