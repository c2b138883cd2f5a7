"""PaCA on linear layers: `nn.Linear`, and transformers' `Conv1D` (GPT-2), which stores its weight as `(in, out)`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D as TransposedLinear

from ...method.columns.update import ColumnUpdate
from ...method.functional.linear import partial_linear
from .base import PacaLayer
from .hooks import has_hooks


class Linear(PacaLayer):
    """`nn.Linear` with adapted columns; a connection is an input feature."""

    connection_dim = 1
    base_forward = nn.Linear.forward
    reads_features_last = True

    def _features(self) -> tuple[int, int]:
        return self.base_layer.in_features, self.base_layer.out_features

    def _run_base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self._modules["base_layer"]
        if args or kwargs or type(base) is not nn.Linear or has_hooks(base):
            return base(x, *args, **kwargs)
        # What its forward does, without the look-ups on the way there: they make up for those that came before.
        parameters: Any = base._parameters
        return F.linear(x, parameters["weight"], parameters["bias"])

    def _multiply(self, x: Tensor, loan: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        bias = self._modules["base_layer"]._parameters["bias"]  # type: ignore[union-attr]
        return linear_over(x, bias, loan, updates)


class Conv1DLinear(PacaLayer):
    """transformers' `Conv1D`, a linear layer whose weight is `(in, out)`; a connection is an input feature."""

    connection_dim = 0
    base_forward = TransposedLinear.forward
    reads_features_last = True

    def _features(self) -> tuple[int, int]:
        connections, length = self.base_layer.weight.shape
        return connections, length

    def _multiply(self, x: Tensor, loan: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        matrix = loan.t() if isinstance(loan, Tensor) else loan.viewed(Tensor.t)
        return linear_over(x, self.base_layer._parameters["bias"], matrix, updates)


def linear_over(x: Tensor, bias: Tensor | None, loan: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
    """`partial_linear`, with the slices of the input that other layers have gathered already.

    Args:
        x: Input, shape `(..., in)`.
        bias: Shape `(out,)`.
        loan: Of the weight as `(out, in)`; in compiled code the weight.
        updates: Those whose columns are in it.

    Returns:
        Shape `(..., out)`.
    """
    if isinstance(loan, Tensor) or (len(updates) == 1 and updates[0].gather is None):
        return partial_linear(x, bias, loan, updates)
    trained = [update for update in updates if not update.retired]
    return partial_linear(x, bias, loan, trained, _gather_together(x, trained))


def _gather_together(x: Tensor, updates: list[ColumnUpdate]) -> tuple[Tensor | None, ...]:
    """`X[..., I]` of the updates that share it with other layers; compiled code finds equal gathers by itself."""
    if not [update for update in updates if update.gather is not None]:
        return ()
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    return tuple(
        update.gather(x, update.indices, dtype)
        if update.gather is not None and update.delta.requires_grad and torch.is_grad_enabled()
        else None
        for update in updates
    )
