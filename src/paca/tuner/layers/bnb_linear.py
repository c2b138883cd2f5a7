"""bitsandbytes' 4-bit layer with a forward and a backward that are right on every CPU; imports bitsandbytes."""

from __future__ import annotations

from typing import ClassVar

import bitsandbytes as bnb
import torch
from torch import Tensor

from ...method.columns.dequantized import DequantizedColumns
from ...method.functional.linear import partial_linear
from .bnb_weight import compute_dtype, dequantized_4bit


class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """A 4-bit layer whose rows end within a block of scales, as `bnb_cpu.apply_cpu_workarounds` leaves it."""

    REPLACED: ClassVar = (bnb.nn.Linear4bit, bnb.nn.LinearNF4, bnb.nn.LinearFP4)

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """As in the class it comes from, but on the CPU over the matrix of `dequantized_4bit`.

        Args:
            x: Input, shape `(..., in)`.

        Returns:
            Shape `(..., out)`.
        """
        if x.device.type != "cpu":
            y: Tensor = super().forward(x)
            return y
        dtype = compute_dtype(self, x)
        bias = None if self.bias is None else self.bias.to(dtype)
        loan = DequantizedColumns(self._matrix).lend(None, ())
        return partial_linear(x.to(dtype), bias, loan, ()).to(x.dtype)

    def _matrix(self) -> Tensor:
        state = getattr(self.weight, "quant_state", None) or self.quant_state  # FSDP2 leaves plain bytes
        return dequantized_4bit(self.weight.data, state)
