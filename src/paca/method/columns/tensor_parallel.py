"""Resident columns of a linear layer's weight that tensor parallelism has divided: `tp_plan` of transformers.

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

from .resident import Columns, Term, adapted_columns, connection_union, connections_first
from .sharded import is_sharded


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
    """Keeps this rank's part of the columns of a divided weight.

    Writing row-wise columns, and whatever returns whole ones, is a collective call.

    Args:
        weight: Shape `(out, in)`, a `DTensor` divided on one of them.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight, connection_dim=1, delta_dim=1)
        self._places: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # indices by their id, and what `place` found

    @property
    def row_wise(self) -> bool:
        """Whether a rank holds some connections, and not some outputs."""
        return self.weight.placements[0].is_shard(1)

    @property
    def rows(self) -> Tensor:
        """The memory of this rank's part, connections first."""
        return connections_first(_local(self.weight), 1)

    def span(self, dim: int) -> tuple[int, int]:
        """Which part of a dimension of the weight this rank holds.

        Args:
            dim: The dimension.

        Returns:
            Its first index, and the first one after it.
        """
        weight = self.weight
        size, mesh = weight.shape[dim], weight.device_mesh
        if not weight.placements[0].is_shard(dim):
            return 0, size
        longest = -(-size // mesh.size())
        start = min(mesh.get_local_rank() * longest, size)
        return start, min(start + longest, size)

    def place(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some connections this rank holds.

        Args:
            indices: Shape `(r,)`, ascending, the same on every rank.

        Returns:
            Their positions among `indices`, and the positions of their columns in this rank's part; each `(n,)`.
        """
        found = self._places.get(id(indices))
        if found is None or found[0] is not indices:
            start, stop = self.span(1)
            own = ((indices >= start) & (indices < stop)).nonzero().flatten()
            found = self._places[id(indices)] = (indices, own, indices[own] - start)
        return found[1:]

    def pretrained_copy(self) -> Tensor:
        """A copy of the weight, divided as it is, with the pretrained values; the weight stays as it is."""
        copy = self.weight.detach().clone()
        if self.shown is not None:
            self._put_back(connections_first(_local(copy), 1))
        return copy

    def pretrained_columns(self, indices: Tensor) -> Tensor:
        """As a whole weight's; a collective call, for the columns are put together from all ranks.

        Args:
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, out)`, the same on every rank.
        """
        from torch.distributed.tensor import DTensor, Partial

        indices = indices.to(self.weight.device)
        start, stop = self.span(1)
        own = ((indices >= start) & (indices < stop)).nonzero().flatten()
        part = connections_first(_local(self.pretrained_copy()), 1).index_select(0, indices[own] - start)
        columns = part.new_zeros(len(indices), self.weight.shape[0])
        columns[own, slice(*self.span(0))] = part
        return DTensor.from_local(columns, self.weight.device_mesh, [Partial()], run_check=False).full_tensor()

    def would_show(self, terms: tuple[Term, ...]) -> Tensor:
        """This rank's part of the values that `show` would write.

        Args:
            terms: The adapters.

        Returns:
            Shape `(n, …)`, for the union of the connections that this rank holds.
        """
        terms = self._parts(terms)
        indices = connection_union(terms)
        pretrained = connections_first(_local(self.pretrained_copy()), 1).index_select(0, indices)
        return adapted_columns(pretrained, indices, terms, 1)

    def hand_out(self, alias: Tensor) -> None:
        """Promise that `alias`, which shares this part's memory, keeps the pretrained values.

        Args:
            alias: A divided tensor over the whole weight, taken while nothing was shown.
        """
        super().hand_out(_local(alias))

    def _write_terms(self, terms: tuple[Term, ...]) -> None:
        super()._write_terms(self._parts(terms))

    @torch.no_grad()
    def _parts(self, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        """The terms of this rank's part: its rows of the updates, or those of its connections."""
        if not self.row_wise:
            return tuple(term._replace(delta=_local(term.delta)) for term in terms)
        parts = []
        for term in terms:
            delta: Any = term.delta
            positions, indices = self.place(term.indices)
            parts.append(term._replace(delta=delta.full_tensor().index_select(1, positions), indices=indices))
        return tuple(parts)


@torch.no_grad()
def _local(tensor: Any) -> Tensor:
    """This rank's part, the memory itself and not a view that autograd knows of."""
    return tensor.to_local()
