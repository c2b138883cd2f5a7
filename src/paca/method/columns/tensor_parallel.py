"""Columns of a linear layer's weight that tensor parallelism has divided: `tp_plan` of transformers.

A rank computes with its part of the weight alone, which is never gathered. A column-wise part is some rows of `W`
`(out, in)`: all connections, for some outputs. A row-wise one is some columns of `W`: some connections, for all
outputs. Which are trained does not depend on how they are divided, so row-wise ranks hold different numbers of them.

The updates `Δ` `(out, r)` are divided by their rows in both cases, whatever connections were chosen: every rank holds,
and steps, an equal part. Column-wise these are the rows that it needs. Row-wise it needs all rows of its own
connections: columns are written from the gathered `Δ`, and ranks sum and divide its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .resident import Columns
from .sharded import is_sharded
from .update import ColumnUpdate, connections_first


def is_tensor_parallel(weight: Any) -> bool:
    """Whether a weight is divided over a mesh that has a dimension for tensor parallelism."""
    return is_sharded(weight) and "tp" in (weight.device_mesh.mesh_dim_names or ())


def layout_problem(weight: Any) -> str | None:
    """Why a linear layer's weight that tensor parallelism has divided can't hold columns.

    Args:
        weight: Shape `(out, in)`.

    Returns:
        A sentence that says what to do instead; None if it can.
    """
    if weight.device_mesh.ndim == 1 and any(type(p).__name__ == "Shard" for p in weight.placements):
        return None
    return (
        f"its weight is divided as {tuple(weight.placements)} over a mesh of {weight.device_mesh.ndim} dimensions; "
        "updates can be divided with weights that are planned as colwise or rowwise, over a mesh of tp alone. Leave "
        "the layer out with exclude_modules, or load the model without tp_plan and shard it with FSDP2."
    )


class TensorParallelColumns(Columns):
    """The columns of a weight `(out, in)` that is a `DTensor` divided on one of its dimensions.

    Writing row-wise columns, and whatever returns whole ones, is a collective call.
    """

    def __init__(self) -> None:
        super().__init__(connection_dim=1, delta_dim=1)
        self._places: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # indices by their id, and what `place` found

    def rows(self, weight: Any) -> Tensor:
        """The memory of this rank's part, connections first."""
        return connections_first(_local(weight), 1)

    @torch.no_grad()
    def parts(self, weight: Any, updates: tuple[ColumnUpdate, ...]) -> tuple[ColumnUpdate, ...]:
        """The updates of this rank's part: its rows of them, or those of its connections."""
        if not is_row_wise(weight):
            return tuple(update._replace(delta=_local(update.delta)) for update in updates)
        parts = []
        for update in updates:
            delta: Any = update.delta
            positions, indices = self.place(weight, update.indices)
            parts.append(update._replace(delta=delta.full_tensor().index_select(1, positions), indices=indices))
        return tuple(parts)

    def place(self, weight: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some connections this rank holds.

        Args:
            weight: The weight.
            indices: Shape `(r,)`, ascending, the same on every rank.

        Returns:
            Their positions among `indices`, and the positions of their columns in this rank's part; each `(n,)`.
        """
        found = self._places.get(id(indices))
        if found is None or found[0] is not indices:
            start, stop = span(weight, 1)
            own = ((indices >= start) & (indices < stop)).nonzero().flatten()
            found = self._places[id(indices)] = (indices, own, indices[own] - start)
        return found[1:]

    def pretrained_columns(self, weight: Any, indices: Tensor) -> Tensor:
        """As a whole weight's; a collective call, for the columns are put together from all ranks.

        Args:
            weight: The weight.
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, out)`, the same on every rank.
        """
        from torch.distributed.tensor import DTensor, Partial

        indices = indices.to(weight.device)
        start, stop = span(weight, 1)
        own = ((indices >= start) & (indices < stop)).nonzero().flatten()
        part = super().pretrained_columns(weight, indices[own] - start)
        columns = part.new_zeros(len(indices), weight.shape[0])
        columns[own, slice(*span(weight, 0))] = part
        return DTensor.from_local(columns, weight.device_mesh, [Partial()], run_check=False).full_tensor()


def is_row_wise(weight: Any) -> bool:
    """Whether a rank holds some connections of a divided weight, and not some outputs."""
    return weight.placements[0].is_shard(1)


def span(weight: Any, dim: int) -> tuple[int, int]:
    """Which part of a dimension of a divided weight this rank holds.

    Args:
        weight: The weight.
        dim: The dimension.

    Returns:
        Its first index, and the first one after it.
    """
    size, mesh = weight.shape[dim], weight.device_mesh
    if not weight.placements[0].is_shard(dim):
        return 0, size
    longest = -(-size // mesh.size())
    start = min(mesh.get_local_rank() * longest, size)
    return start, min(start + longest, size)


@torch.no_grad()
def _local(tensor: Any) -> Tensor:
    """This rank's part, the memory itself and not a view that autograd knows of."""
    return tensor.to_local()
