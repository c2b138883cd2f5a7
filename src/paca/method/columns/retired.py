"""Connections that move: what was trained at others before stays in the weight, and is kept beside the trained ones.

The trained connections `I` and the retired ones `S` never overlap. A connection that is chosen again takes its update
along, so that at any moment

    W[:, I ∪ S] = W₀[:, I ∪ S] + s·[Δ_I, Δ_S]

is one ordinary adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class RetiredColumns(NamedTuple):
    """Connections of one adapter in one layer that were trained and are not any more."""

    indices: Tensor  # (n,), int64, ascending
    delta: Tensor  # their updates, of the shape that the trained ones have at rank n; on the CPU
    visited: Tensor  # (m,), visited in the current sweep over all connections, those being trained included

    def joined(self, indices: Tensor, delta: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """One adapter of all connections, retired and trained.

        Args:
            indices: The trained connections, shape `(r,)`.
            delta: Their updates.
            dim: The dimension of the updates that counts connections.

        Returns:
            Indices, ascending, shape `(n + r,)`, and the updates, both where `indices` and `delta` are.
        """
        both = torch.cat([self.indices.to(indices.device), indices])
        updates = torch.cat([self.delta.to(delta), delta], dim)
        order = both.argsort()
        return both[order], updates.index_select(dim, order.to(updates.device))

    def moved(self, fn: Callable[[Tensor], Tensor]) -> RetiredColumns:
        """After the module was moved: the indices where it is, the updates on the CPU.

        Args:
            fn: What was applied to the module's tensors.

        Returns:
            The record.
        """
        return self._replace(indices=fn(self.indices))


def split(indices: Tensor, delta: Tensor, trained: Tensor, visited: Tensor, dim: int) -> tuple[Tensor, RetiredColumns]:
    """Take an adapter of all connections apart again; the inverse of `RetiredColumns.joined`.

    Args:
        indices: All connections, ascending.
        delta: Their updates.
        trained: Those of `indices` that are trained, ascending; shape `(r,)`.
        visited: Connections visited in the current sweep.
        dim: The dimension of the updates that counts connections.

    Returns:
        The updates of the trained ones, and the rest.
    """
    is_trained = torch.isin(indices, trained.to(indices.device))
    rest = (~is_trained).nonzero().flatten()
    retired = RetiredColumns(indices[rest], delta.index_select(dim, rest.to(delta.device)).cpu(), visited)
    return delta.index_select(dim, is_trained.nonzero().flatten().to(delta.device)), retired


def move(
    delta: Tensor, old: Tensor, new: Tensor, retired: RetiredColumns | None, dim: int
) -> tuple[Tensor, RetiredColumns]:
    """Exchange the trained connections.

    Args:
        delta: The updates of the connections trained so far.
        old: These connections, shape `(r,)`.
        new: Those to train from now on, ascending, shape `(r,)`.
        retired: Those trained before.
        dim: The dimension of the updates that counts connections.

    Returns:
        The updates of the new connections, zero where they were never trained, and what is retired then.
    """
    if retired is None:
        retired = RetiredColumns(old[:0], delta.narrow(dim, 0, 0).cpu(), old)
    indices, updates = retired.joined(old, delta, dim)
    fresh = new[~torch.isin(new, indices)]
    zeros = torch.zeros_like(delta).narrow(dim, 0, len(fresh))
    whole = RetiredColumns(fresh, zeros, retired.visited)
    indices, updates = whole.joined(indices, updates, dim)
    again = bool(torch.isin(new, retired.visited.to(new.device)).any())
    visited = new if again else torch.cat([retired.visited.to(new.device), new])
    return split(indices, updates, new, visited, dim)


def saved_settings(layers: Mapping[str, Any], adapter_name: str) -> dict[str, Any]:
    """What the file of a moved adapter says of its ranks: those of all connections, with the same scaling.

    Args:
        layers: Its layers by name.
        adapter_name: The adapter.

    Returns:
        Fields of the configuration, with the values to save.
    """
    ranks = {name: len(layer.whole_update(adapter_name)[0]) for name, layer in layers.items()}
    alphas = {
        name: layer.paca_alpha[adapter_name] * ranks[name] / layer.r[adapter_name] for name, layer in layers.items()
    }
    r, alpha = (max(values, key=list(values).count) for values in (ranks.values(), alphas.values()))
    return {
        "r": r,
        "paca_alpha": alpha,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "reselect_every": None,
    }
