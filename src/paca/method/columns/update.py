"""What an adapter adds to single connections of a weight, and the values that they then have.

    W[:, I] = W₀[:, I] + Σ sₖ·Δₖ

Columns are read and written with the connections first: those of a weight of shape `(out, in)` as `(r, out)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ColumnUpdate(NamedTuple):
    """One adapter's share of a weight: `scaling · delta`, added to the connections `indices`."""

    indices: Tensor  # (r,), int64, ascending
    delta: Tensor  # the trained parameter itself, its connections where the weight has them: (out, r)
    scaling: float
    pretrained: Tensor | None = None  # other values of W₀[:, I] than the weight's, shaped as `delta`
    gather: Callable[[Tensor, Tensor, torch.dtype], Tensor] | None = None  # of X[..., I], for several layers at once
    retired: bool = False  # trained once, not any more


def same_updates(one: Sequence[ColumnUpdate], other: Sequence[ColumnUpdate]) -> bool:
    """Whether two lists name the same parameters at the same connections with the same scaling."""
    return len(one) == len(other) and all(
        a.delta is b.delta and a.indices is b.indices and a.scaling == b.scaling
        for a, b in zip(one, other, strict=True)
    )


def connections_first(tensor: Tensor, dim: int) -> Tensor:
    """A view of a weight or an update with the dimension that counts connections in front."""
    return tensor.t() if dim == 1 and tensor.dim() == 2 else tensor.movedim(dim, 0)


def connection_union(updates: Sequence[ColumnUpdate]) -> Tensor:
    """The connections that any of the updates changes, ascending, each once; shape `(n,)`."""
    if len(updates) == 1:
        return updates[0].indices
    return torch.unique(torch.cat([update.indices for update in updates]))


def adapted_columns(pretrained: Tensor, indices: Tensor, updates: Sequence[ColumnUpdate], dim: int) -> Tensor:
    """`W₀[:, I] + Σ sₖ·Δₖ`, summed in the widest dtype that takes part and rounded once.

    Args:
        pretrained: The pretrained values of the connections `indices`, connections first: shape `(n, …)`.
        indices: Shape `(n,)`, ascending: the union of the updates' indices.
        updates: What to add.
        dim: The dimension of their deltas that counts connections.

    Returns:
        Shape `(n, …)`, in the dtype of `pretrained`.
    """
    if len(updates) == 1:  # the union is the update's own indices
        delta = connections_first(updates[0].delta.detach(), dim)
        if delta.dtype == pretrained.dtype:
            return torch.add(pretrained, delta.to(pretrained.device), alpha=updates[0].scaling)
        out = torch.empty_like(pretrained)
        return torch.add(pretrained, delta.to(pretrained.device), alpha=updates[0].scaling, out=out)
    deltas = [connections_first(update.delta.detach().to(pretrained.device), dim) for update in updates]
    dtype = pretrained.dtype
    for delta in deltas:
        dtype = torch.promote_types(dtype, delta.dtype)
    total = pretrained.to(dtype, copy=True)
    for update, delta in zip(updates, deltas, strict=True):
        rows = torch.searchsorted(indices, update.indices)
        total.index_add_(0, rows, delta.to(dtype), alpha=update.scaling)
    return total.to(pretrained.dtype)
