"""The weight of a norm, `(n,)`, as one connection of `n` values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .lease import _INSIDE, _LOCK, Lease, Stay, memory_of
from .resident import Columns
from .update import ColumnUpdate


class NormColumns(Columns):
    """The one connection of a norm's weight."""

    def __init__(self) -> None:
        super().__init__(connection_dim=0, delta_dim=0)

    def rows(self, weight: Any) -> Tensor:
        """A weight's memory, shape `(1, n)`."""
        return super().rows(weight).unsqueeze(0)

    def trained(self, weight: Any, updates: Sequence[ColumnUpdate]) -> Tensor:
        """`w₀ + Σ sₖ·Δₖ`, summed in the widest dtype that takes part and rounded once; differentiable in every `Δₖ`.

        Args:
            weight: Holds `w₀`, shape `(n,)`, or, in a call of another thread, trained values.
            updates: At least one, of deltas `(1, n)`.

        Returns:
            Shape `(n,)`, in the dtype of `w₀`, in memory of its own.
        """
        if torch.compiler.is_compiling():  # whose weights hold their pretrained values
            return _sum(weight, updates)
        with _LOCK:
            if memory_of(weight) in _INSIDE:
                weight = Stay(Lease(), self, weight, ()).private_copy()
            return _sum(weight, updates)


def _sum(weight: Tensor, updates: Sequence[ColumnUpdate]) -> Tensor:
    total = weight.detach()
    for update in updates:
        total = torch.add(total, update.delta[0].to(total.device), alpha=update.scaling)
    return total.to(weight.dtype)
