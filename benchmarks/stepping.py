"""How a run of `quality.py` steps: which optimizer moves which parameters, and at which rates."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("adamw", "muon")
WARMUP = 0.05


class Stepper:
    """Several optimizers, each with a rate of its own, under one schedule.

    Args:
        optimizers: Each with the rate that it was made with.
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.optimizers = optimizers
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def at(self, share: float) -> None:
        """Set every rate to a share of its own."""
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = share * rate

    def take(self) -> None:
        """Take the step, and drop the gradients."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def make_optimizer(model: nn.Module, name: str, rate: float, others: float, decay: float = 0.0) -> Stepper:
    """Make what steps a model.

    Args:
        model: What requires gradients in it is trained.
        name: `adamw`, or `muon`: orthogonalized momentum, scaled so that AdamW's rates suit it.
        rate: Of the adapter; of all matrices but the embeddings where there is none.
        others: AdamW's rate of what else is trained, such as a new head: the same whatever steps the adapter.
        decay: The adapter's weight decay.

    Returns:
        It.
    """
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    aside = [value for name, value in trained if _is_aside(name, value)]
    kept = {id(value) for value in aside}
    adapter = [value for _, value in trained if id(value) not in kept]
    if name == "muon":
        step: Any = torch.optim.Muon(adapter, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    else:
        step = torch.optim.AdamW(adapter, lr=rate, weight_decay=decay, fused=True)
    rest = [torch.optim.AdamW(aside, lr=others, weight_decay=0.0, fused=True)] if aside else []
    return Stepper([step, *rest])


def _is_aside(name: str, value: Any) -> bool:
    if "modules_to_save" in name:
        return "norm" not in name  # which is trained with the adapter, at its rate; else it is a head
    return "embed" in name or value.dim() < 2


def linear_decay(steps: int, rising: float = WARMUP) -> Callable[[int], float]:
    """Rise over a share of the steps, then fall linearly to zero; a share of the rate by step."""
    warmup = max(1, round(rising * steps))
    return lambda number: min((number + 1) / warmup, (steps - number) / (steps - warmup + 1))
