"""The mathematics of a partially trained embedding, as one autograd function.

The embedding's counterpart of `linear.py`. Dimension letters:

    T  (...)        token ids                E  (vocab, d)  the table, with the adapted rows in it
    Y  (..., d)     output, `E[T]`           Δ  (r, d)      what is trained: `E[I] = E₀[I] + s·Δ`
    I  (r,)         the selected tokens      s              scaling, `alpha / r`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..columns.update import ColumnUpdate
from .compiled import embedding_op


def places(ids: Tensor, indices: Tensor, padding_idx: int | None) -> Tensor:
    """Where each token's row is in `Δ`.

    Args:
        ids: Token ids, any shape.
        indices: The selected tokens `I`, shape `(r,)`, ascending.
        padding_idx: The token whose row gets no gradient.

    Returns:
        The shape of `ids`: 0 to `r - 1`, and `r` for a token that is not trained.
    """
    rank = len(indices)
    ids = ids.to(indices.dtype)
    found = torch.searchsorted(indices, ids)
    hit = (found < rank) & (indices[found.clamp(max=rank - 1)] == ids)
    if padding_idx is not None:
        hit = hit & (ids != padding_idx)
    return torch.where(hit, found, rank)


class PartialEmbedding(torch.autograd.Function):
    """`Y = E[T]`, with gradients for the rows of each adapter and for nothing else; only `T` is kept for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,  # (...), integers
        loan: Any,  # of E, (vocab, d); compiled: E itself
        padding_idx: int | None,
        scale_grad_by_freq: bool,
        indices: tuple[Tensor, ...],  # one (r,) per adapter
        scalings: tuple[float, ...],
        *deltas: Tensor,  # one (r, d) per adapter
    ) -> Tensor:
        ctx.save_for_backward(ids, *indices)
        ctx.padding_idx, ctx.by_frequency, ctx.scalings = padding_idx, scale_grad_by_freq, scalings
        ctx.dtypes = [delta.dtype for delta in deltas]
        if isinstance(loan, Tensor):
            return embedding_op(ids, loan, list(indices), list(deltas), list(scalings))
        with loan as table:
            return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        ids, *indices = ctx.saved_tensors
        grad_deltas: list[Tensor | None] = []
        of_adapter = zip(indices, ctx.scalings, ctx.dtypes, ctx.needs_input_grad[6:], strict=True)
        for index, scaling, dtype, needed in of_adapter:
            if not needed:
                grad_deltas.append(None)
                continue
            rows, rank = places(ids, index, ctx.padding_idx), len(index)
            # PyTorch's gradient of an embedding with `r + 1` rows, the last of which is padding: the other tokens'.
            grad = torch.ops.aten.embedding_dense_backward(grad_output, rows, rank + 1, rank, ctx.by_frequency)
            grad_deltas.append(grad[:rank].to(dtype) * scaling)  # ∇Δ = s · ∇E[I]
        return None, None, None, None, None, None, *grad_deltas


def partial_embedding(
    ids: Tensor, loan: Any, padding_idx: int | None, scale_grad_by_freq: bool, updates: Sequence[ColumnUpdate]
) -> Tensor:
    """An embedding whose table holds adapted rows, differentiable in these.

    Computes `Y = E[T]`, and for every adapter `∇Δₖ[j] = sₖ · Σ ∇Y[t]` over the tokens `t` whose id is `Iₖ[j]`.

    Args:
        ids: Token ids, any shape.
        loan: Has the rows in the table, `(vocab, d)`. In compiled code the table, which holds its pretrained values.
        padding_idx: The token whose row gets no gradient, also where it is selected.
        scale_grad_by_freq: Divide a row's gradient by how often its token is in `ids`.
        updates: The updates that are trained, each `(r, d)`; in compiled code all.

    Returns:
        Shape `(..., d)`.
    """
    indices = tuple(update.indices for update in updates)
    scalings = tuple(update.scaling for update in updates)
    deltas = (update.delta for update in updates)
    y: Tensor = PartialEmbedding.apply(ids, loan, padding_idx, scale_grad_by_freq, indices, scalings, *deltas)
    return y


def embedding_update(
    ids: Tensor, delta: Tensor, indices: Tensor, padding_idx: int | None, scale_grad_by_freq: bool
) -> Tensor:
    """What an update adds to an embedding's output: `Δ`'s row where a token is selected, else zeros.

    Args:
        ids: Token ids, any shape.
        delta: `Δ`, shape `(r, d)`.
        indices: Its tokens, shape `(r,)`, ascending.
        padding_idx: The token whose row gets no gradient; its row of `Δ` is added all the same.
        scale_grad_by_freq: Divide a row's gradient by how often its token is in `ids`.

    Returns:
        Shape `(..., d)`.
    """
    rank = len(indices)
    if padding_idx is not None:
        delta = torch.where((indices == padding_idx)[:, None], delta.detach(), delta)
    rows = F.pad(delta, (0, 0, 0, 1))
    return F.embedding(places(ids, indices, None), rows, rank, scale_grad_by_freq=scale_grad_by_freq)
