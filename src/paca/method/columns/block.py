"""Columns that lie side by side are read and written as one block.

In a row-major weight each row of such a block is one run of memory, of a few cache lines in place of one per column.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

Where = slice | Tensor  # connections: from one to another, or the index of each


class Block:
    """Remembers whether the connections of one weight lie side by side; that is looked at once."""

    def __init__(self) -> None:
        self._indices: Tensor | None = None
        self._version = 0
        self._where: Where | None = None

    def of(self, indices: Tensor) -> Where:
        """Where some connections are.

        Args:
            indices: Shape `(n,)`.

        Returns:
            A slice if they are consecutive, else the indices. Those on another device than the CPU are not looked
            at, for that would wait for it, nor are fake ones, which can't be.
        """
        version = 0 if indices.is_inference() else indices._version
        if self._where is None or self._indices is not indices or self._version != version:
            self._indices, self._version, self._where = indices, version, _block_or_indices(indices)
        return self._where


def _block_or_indices(indices: Tensor) -> Where:
    if indices.device.type != "cpu" or len(indices) == 0 or is_fake(indices):
        return indices
    first, end = int(indices[0]), int(indices[-1]) + 1
    if end - first != len(indices) or not torch.equal(indices, torch.arange(first, end)):
        return indices
    return slice(first, end)


def take(rows: Tensor, where: Where, out: Tensor | None = None) -> Tensor:
    """Copies of some columns, connections first, in memory of their own or in that of `out`."""
    if isinstance(where, slice):
        block = rows[where]
        return block.clone() if out is None else out.copy_(block)
    return rows.index_select(0, where) if out is None else torch.index_select(rows, 0, where, out=out)


def put(rows: Tensor, where: Where, values: Tensor) -> None:
    """Write columns, connections first."""
    if isinstance(where, slice):
        rows[where].copy_(values)
    else:
        rows.index_copy_(0, where, values)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if torch.equal(one, other):
        return True
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
