"""The mathematics of a partially trained embedding, as one autograd function.

The embedding's counterpart of `autograd.py`. Dimension letters:

    T  (...)        token ids                E  (vocab, d)  the table, with the adapted rows in it
    Y  (..., d)     output, `E[T]`           Δ  (r, d)      what is trained: `E[I] = E₀[I] + s·Δ`
    I  (r,)         the selected tokens      s              scaling, `alpha / r`
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import PacaError


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
        weight: Tensor,  # (vocab, d), frozen
        padding_idx: int | None,
        scale_grad_by_freq: bool,
        indices: tuple[Tensor, ...],  # one (r,) per adapter
        scalings: tuple[float, ...],
        *deltas: Tensor,  # one (r, d) per adapter
    ) -> Tensor:
        ctx.save_for_backward(ids, *indices)
        ctx.padding_idx, ctx.by_frequency, ctx.scalings = padding_idx, scale_grad_by_freq, scalings
        ctx.dtypes = [delta.dtype for delta in deltas]
        return F.embedding(ids, weight)

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
    ids: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    scale_grad_by_freq: bool,
    indices: tuple[Tensor, ...],
    scalings: tuple[float, ...],
    deltas: tuple[Tensor, ...],
) -> Tensor:
    """An embedding whose table holds adapted rows, differentiable in these.

    Computes `Y = E[T]`, and for every adapter `∇Δₖ[j] = sₖ · Σ ∇Y[t]` over the tokens `t` whose id is `Iₖ[j]`. The
    values of `deltas` are not read: the table holds them already.

    Args:
        ids: Token ids, any shape.
        weight: Shape `(vocab, d)`, frozen, its rows adapted.
        padding_idx: The token whose row gets no gradient, also where it is selected.
        scale_grad_by_freq: Divide a row's gradient by how often its token is in `ids`.
        indices: The tokens `Iₖ` of each adapter, each of shape `(r,)`, ascending.
        scalings: `sₖ = alpha / r` of each adapter.
        deltas: The trained updates `Δₖ`, each of shape `(r, d)`.

    Returns:
        Shape `(..., d)`.

    Raises:
        PacaError: If the table itself requires a gradient: it would get none, without a word.
    """
    if weight.requires_grad and torch.is_grad_enabled():
        raise PacaError(
            "The table of an adapted embedding requires a gradient, but only its selected tokens are trained. Freeze "
            "it: weight.requires_grad_(False)."
        )
    y: Tensor = PartialEmbedding.apply(ids, weight, padding_idx, scale_grad_by_freq, indices, scalings, *deltas)
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
