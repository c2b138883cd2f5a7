"""A short fingerprint of pretrained columns: was an adapter trained on these, or on others?

An adapter is a change to certain columns of a certain model. Put on another model of the same shape it loads without
complaint and computes nonsense, so each adapter carries eight numbers per layer that depend on its columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 8

# The largest relative difference that rounding explains. bfloat16 makes about 0.002; int8 0.01, NF4 0.1, and three
# bits 0.25, of which eight projections may show twice as much. Another model makes 1.4.
ROUNDED = 0.02
QUANTIZED = 0.5


def fingerprint(columns: Tensor) -> Tensor:
    """Eight fixed projections of the columns, `fₖ = Σᵢⱼ cos(k·i) · cos(k·√2·j) · W₀[j, i]`.

    Linear in the columns, so that rounding them (to bfloat16, to a quantized format) moves it about as little as it
    moves them, which equality of a hash would not survive.

    Args:
        columns: Pretrained values of an adapter's connections, connections first, shape `(r, …)`.

    Returns:
        Shape `(8,)`, float32, on the CPU.
    """
    matrix = columns.detach().reshape(len(columns), -1).float().cpu()
    steps = torch.arange(1, SIZE + 1, dtype=torch.float64)[:, None]
    left = torch.cos(steps * torch.arange(1, matrix.shape[0] + 1)).float()
    right = torch.cos(steps * 2**0.5 * torch.arange(1, matrix.shape[1] + 1)).float()
    return ((left @ matrix) * right).sum(1)


def same_columns(saved: Tensor, columns: Tensor, tolerance: float = ROUNDED) -> bool:
    """Whether a fingerprint is that of these columns, up to rounding.

    Args:
        saved: What `fingerprint` gave for the columns that an adapter was trained on.
        columns: The columns that it is put on, connections first.
        tolerance: Largest relative difference that counts as rounding: `ROUNDED`, or `QUANTIZED` if either side's
            columns come from a quantized weight.

    Returns:
        Whether they agree.
    """
    found = fingerprint(columns)
    scale = max(float(saved.norm()), float(found.norm()))
    return scale == 0 or float((saved.cpu().float() - found).norm()) <= tolerance * scale
