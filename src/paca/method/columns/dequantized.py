"""Columns of a weight that cannot hold them: a quantized one.

Where `Columns` writes into the weight, this writes nothing. Each GEMM gets a matrix of its own, dequantized for it,

    W = dequantize(quantized),   W[:, I] = W₀[:, I] + s·Δ

and drops it. The quantized weight is never touched, so there is nothing to restore.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .changes import versions
from .lease import CHANGED
from .update import ColumnUpdate, adapted_columns, connection_union, connections_first


class DequantizedColumns:
    """Makes the matrix that a quantized weight of shape `(out, in)` stands for, with adapters' columns in it.

    `W₀[:, I]` is the dequantized weight's, unless an update brings better values of its own
    (`ColumnUpdate.pretrained`).

    Args:
        dequantize: Returns the quantized weight as a matrix of shape `(out, in)` in memory of its own.
    """

    delta_dim = 1

    def __init__(self, dequantize: Callable[[], Tensor]) -> None:
        self.dequantize = dequantize

    def lend(self, weight: Any, updates: tuple[ColumnUpdate, ...]) -> MatrixLoan:
        """Matrices for the products of one forward pass and of its backward.

        Args:
            weight: Not looked at: `dequantize` knows it.
            updates: What the columns are made of.

        Returns:
            A context that makes the matrix.
        """
        return MatrixLoan(self, updates)

    @torch.no_grad()
    def matrix(self, updates: tuple[ColumnUpdate, ...], dtype: torch.dtype) -> Tensor:
        """The dequantized weight with columns in it; to be dropped after use.

        The columns are summed in the widest dtype that takes part.

        Args:
            updates: What the columns are made of; none for the dequantized weight itself.
            dtype: Of the result.

        Returns:
            Shape `(out, in)`.
        """
        matrix = self.dequantize()
        if not updates:
            return matrix.to(dtype)
        if all(_adds_in_place(update, matrix.dtype) for update in updates):
            for update in updates:  # a third of the time of taking columns out, adding, and putting them back
                delta = connections_first(update.delta.detach(), self.delta_dim).to(matrix.dtype)
                matrix.t().index_add_(0, update.indices, delta, alpha=update.scaling)
            return matrix.to(dtype)
        indices, columns = self._adapted(matrix, updates)
        matrix = matrix.to(dtype)
        matrix.t().index_copy_(0, indices, columns.to(dtype))
        return matrix

    def pretrained_columns(self, weight: Any, indices: Tensor) -> Tensor:
        """The dequantized weight's values of some connections, connections first.

        Args:
            weight: Not looked at.
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, out)`.
        """
        matrix = self.dequantize()
        return matrix.t().index_select(0, indices.to(matrix.device))

    @torch.no_grad()
    def would_be(self, weight: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        """The columns that the updates put into the matrix, connections first.

        Args:
            weight: Not looked at.
            updates: At least one.

        Returns:
            Shape `(n, out)`, for the union of their connections.
        """
        return self._adapted(self.dequantize(), updates)[1]

    def _adapted(self, matrix: Tensor, updates: tuple[ColumnUpdate, ...]) -> tuple[Tensor, Tensor]:
        indices = connection_union(updates)
        columns = matrix.t().index_select(0, indices)
        for update in updates:
            if update.pretrained is not None:
                columns = columns.to(torch.promote_types(columns.dtype, update.pretrained.dtype))
                rows = torch.searchsorted(indices, update.indices)
                columns.index_copy_(0, rows, update.pretrained.t().to(columns.dtype))
        return indices, adapted_columns(columns, indices, updates, self.delta_dim)


class MatrixLoan:
    """The matrix of a quantized weight with columns in it, made for each product.

    Args:
        columns: Makes it.
        updates: What the columns are made of.
    """

    def __init__(self, columns: DequantizedColumns, updates: tuple[ColumnUpdate, ...]) -> None:
        self.columns = columns
        self.updates = updates
        self.versions = versions(updates)
        self.dtype = torch.float32  # of the product

    def __enter__(self) -> Tensor:
        if versions(self.updates) != self.versions:
            raise RuntimeError(CHANGED)
        return self.columns.matrix(self.updates, self.dtype)

    def __exit__(self, *_: object) -> None:
        """Nothing to put back: the matrix is dropped."""

    def finish(self) -> None:
        """Nothing to let go of."""


def _adds_in_place(update: ColumnUpdate, dtype: torch.dtype) -> bool:
    """Whether adding an update to the matrix itself rounds as adding it in the widest dtype does."""
    return update.pretrained is None and torch.promote_types(dtype, update.delta.dtype) == dtype
