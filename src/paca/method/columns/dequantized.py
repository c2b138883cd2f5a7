"""Columns of a weight that cannot hold them: a quantized one.

Where `Columns` writes into the weight, this writes nothing. Each GEMM gets a matrix of its own, dequantized for it,

    W = dequantize(packed),   W[:, I] = W₀[:, I] + s·Δ

and drops it. The packed weight is never touched, so there is nothing to restore.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .resident import ColumnKeeper, Shown, Term, adapted_columns, connection_union, connections_first


class DequantizedColumns(ColumnKeeper):
    """Makes the matrix that a packed weight of shape `(out, in)` stands for, with adapters' columns in it.

    `W₀[:, I]` is the dequantized weight's, unless a term brings better values of its own (`Term.pretrained`).

    Args:
        dequantize: Returns the packed weight as a matrix of shape `(out, in)` in memory of its own.
    """

    def __init__(self, dequantize: Callable[[], Tensor]) -> None:
        super().__init__(delta_dim=1)
        self.dequantize = dequantize

    def show(self, terms: tuple[Term, ...], train: bool = False) -> Shown:
        """Record which columns a forward pass uses.

        Args:
            terms: The adapters to show, at least one.
            train: Whether the deltas are being trained; it makes no difference here.

        Returns:
            The record, for `matrix`.
        """
        self._watch(terms)
        return Shown(terms, self._key(terms))

    def show_again(self, shown: Shown | None) -> None:
        """Check that an earlier forward's matrix can still be made, for that forward's backward.

        Args:
            shown: What `show` returned then.

        Raises:
            RuntimeError: If a delta was changed since, or columns were merged.
        """
        if shown is not None:
            self._require_unchanged(shown)

    @torch.no_grad()
    def matrix(self, shown: Shown | None, dtype: torch.dtype) -> Tensor:
        """The dequantized weight with columns in it; to be dropped after use.

        The columns are summed in the widest dtype that takes part.

        Args:
            shown: Which columns; None or no terms for the dequantized weight itself.
            dtype: Of the result.

        Returns:
            Shape `(out, in)`.
        """
        matrix = self.dequantize()
        if shown is None or not shown.terms:
            return matrix.to(dtype)
        if all(_adds_in_place(term, matrix.dtype) for term in shown.terms):
            for term in shown.terms:  # a third of the time of taking columns out, adding, and putting them back
                delta = connections_first(term.delta.detach(), self.delta_dim).to(matrix.dtype)
                matrix.t().index_add_(0, term.indices, delta, alpha=term.scaling)
            return matrix.to(dtype)
        indices, columns = self._adapted(matrix, shown.terms)
        matrix = matrix.to(dtype)
        matrix.t().index_copy_(0, indices, columns.to(dtype))
        return matrix

    def pretrained_columns(self, indices: Tensor) -> Tensor:
        """The dequantized weight's values of some connections, connections first.

        Args:
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, out)`.
        """
        matrix = self.dequantize()
        return matrix.t().index_select(0, indices.to(matrix.device))

    @torch.no_grad()
    def would_show(self, terms: tuple[Term, ...]) -> Tensor:
        """The columns that the terms put into the matrix, connections first.

        Args:
            terms: The adapters.

        Returns:
            Shape `(n, out)`, for the union of their connections.
        """
        return self._adapted(self.dequantize(), terms)[1]

    def _adapted(self, matrix: Tensor, terms: tuple[Term, ...]) -> tuple[Tensor, Tensor]:
        indices = connection_union(terms)
        columns = matrix.t().index_select(0, indices)
        for term in terms:
            if term.pretrained is not None:
                columns = columns.to(torch.promote_types(columns.dtype, term.pretrained.dtype))
                rows = torch.searchsorted(indices, term.indices)
                columns.index_copy_(0, rows, term.pretrained.t().to(columns.dtype))
        return indices, adapted_columns(columns, indices, terms, self.delta_dim)

    def refresh(self) -> None:
        """Nothing to do: every matrix is made from the columns of its moment."""

    def take_out(self) -> None:
        """Nothing to do: the packed weight is the pretrained one."""

    def release(self) -> None:
        """Nothing to do, likewise."""

    def hand_out(self, alias: Tensor) -> None:
        """Nothing to do: nobody writes into the packed weight.

        Args:
            alias: A tensor over the packed weight.
        """


def _adds_in_place(term: Term, dtype: torch.dtype) -> bool:
    """Whether adding a term to the matrix itself rounds as adding it in the widest dtype does."""
    return term.pretrained is None and torch.promote_types(dtype, term.delta.dtype) == dtype
