"""Optimizers by the names that Trainer's `optim` has for them, and which of their states lie outside the GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from paca.errors import PacaError
from paca.workbench.base.messages import suggestion
from paca.workbench.base.trainer_arguments import MUON
from paca.workbench.methods.muon import Muon

PAGED_FROM = 100_000  # values; bitsandbytes leaves the states of smaller parameters on the GPU
ADAMW_OPERATIONS = 16  # per value: two moving averages, their corrections, root, quotient, update, decay


@dataclass(frozen=True)
class Optimizer:
    """An optimizer.

    Args:
        name: What is typed.
        make: Builds it over parameters of a model.
        paged: Whether the states of large parameters may leave the GPU.
    """

    name: str
    make: Callable[[Sequence[nn.Parameter], nn.Module], torch.optim.Optimizer]
    paged: bool = False


def _bitsandbytes(kind: str) -> Callable[[Sequence[nn.Parameter], nn.Module], torch.optim.Optimizer]:
    def make(parameters: Sequence[nn.Parameter], _: nn.Module) -> torch.optim.Optimizer:
        try:
            import bitsandbytes
        except ImportError as error:
            raise PacaError(
                "8-bit and paged optimizers need the package 'bitsandbytes': pip install bitsandbytes"
            ) from error
        with unset_fake_temporarily():  # it computes a table of 256 values, which fake tensors can't
            optimizer: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind)(parameters)
        return optimizer

    return make


OPTIMIZERS: dict[str, Optimizer] = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("adamw_torch_fused", lambda parameters, _: torch.optim.AdamW(parameters, fused=True)),
        Optimizer("adamw_torch", lambda parameters, _: torch.optim.AdamW(parameters, foreach=True)),
        Optimizer(MUON, lambda parameters, model: Muon([{"params": parameters, "weight_decay": 0.0}], model)),
        Optimizer("adamw_bnb_8bit", _bitsandbytes("AdamW8bit")),
        Optimizer("paged_adamw_32bit", _bitsandbytes("PagedAdamW32bit"), paged=True),
        Optimizer("paged_adamw_8bit", _bitsandbytes("PagedAdamW8bit"), paged=True),
    )
}
ALIASES = {"adamw_8bit": "adamw_bnb_8bit"}  # Trainer's own


def find_optimizer(name: str) -> Optimizer:
    """Find an optimizer by its name in `OPTIMIZERS` or `ALIASES`."""
    known = ALIASES.get(name, name)
    if known not in OPTIMIZERS:
        raise PacaError(
            f"The optimizer {name!r} cannot be planned{suggestion(name, [*OPTIMIZERS, *ALIASES]) or '.'} "
            f"Known: {', '.join(OPTIMIZERS)}."
        )
    return OPTIMIZERS[known]


def with_states(optimizer: torch.optim.Optimizer) -> None:
    """Create a new optimizer's states by a step of zero gradients, so that the next one is like all later ones."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def paged_states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """List the states that bitsandbytes may move out of the GPU, after a step of a paged optimizer."""
    return [
        value
        for parameter, states in optimizer.state.items()
        for name, value in states.items()
        if name in ("state1", "state2") and parameter.numel() >= PAGED_FROM
    ]
