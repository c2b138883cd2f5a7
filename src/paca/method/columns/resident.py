"""How the columns of a weight in memory are read, written and lent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .block import Block, Where, take
from .layout import lay_out_connection_major, lay_out_row_major, writes_faster_connection_major
from .lease import _LOCK, Lease, Loan, Stay, clear, make_pretrained, memory_of, plainly
from .momentary import MomentaryLoan
from .update import ColumnUpdate, adapted_columns, connection_union, connections_first, same_updates


class Columns:
    """The columns of one weight.

    Holds no values of its own between calls, but the memory for `W₀[:, I]`: what a weight was, nobody has to remember.

    Args:
        connection_dim: The weight's dimension that counts connections.
        delta_dim: The dimension of the updates that does.
    """

    def __init__(self, connection_dim: int, delta_dim: int) -> None:
        self.connection_dim = connection_dim
        self.delta_dim = delta_dim
        self.last: Stay | None = None  # the last grant
        self.merged: tuple[ColumnUpdate, ...] = ()  # what is part of the weight for good, until it is restored
        self.block = Block()
        self.buffer: Tensor | None = None  # for the pretrained values that are written over

    def rows(self, weight: Any) -> Tensor:
        """A weight's memory, connections first; autograd doesn't see what is written through it."""
        with plainly():
            return connections_first(weight.detach(), self.connection_dim)

    def parts(self, weight: Any, updates: tuple[ColumnUpdate, ...]) -> tuple[ColumnUpdate, ...]:
        """The updates as this process's part of the weight needs them."""
        return updates

    def read(self, rows: Tensor, where: Where, retired: bool = False) -> Tensor:
        """Copies of some columns, connections first; those of retired connections are kept on the CPU.

        Args:
            rows: The weight's memory, connections first.
            where: `n` of them.
            retired: Whether nobody trains these.

        Returns:
            Shape `(n, …)`.
        """
        return take(rows, where).cpu() if retired else take(rows, where, self.memory_for(rows, where))

    def memory_for(self, rows: Tensor, where: Where) -> Tensor:
        """Memory for copies of some columns: that of the last copies, if it fits.

        Args:
            rows: The weight's memory, connections first.
            where: `n` of them.

        Returns:
            Shape `(n, …)`; any values.
        """
        buffer, self.buffer = self.buffer, None  # nobody else gets it meanwhile
        shape = (where.stop - where.start if isinstance(where, slice) else where.shape[0], *rows.shape[1:])
        if (
            buffer is not None
            and buffer.shape == shape
            and buffer.dtype == rows.dtype
            and buffer.device == rows.device
            and buffer.is_inference() <= torch.is_inference_mode_enabled()
        ):
            return buffer
        return rows.new_empty(shape)

    def keep_buffer(self, kept: list[tuple[Where, Tensor]]) -> None:
        """Keep the memory of copies that are not needed any more, for the next `read`."""
        if kept:
            self.buffer = kept[-1][1]

    def lend(
        self,
        weight: Any,
        updates: tuple[ColumnUpdate, ...],
        *,
        lease: Lease | None = None,
        train: bool | None = None,
        momentary: bool = False,
    ) -> Loan | MomentaryLoan | None:
        """Columns for the products of one forward pass and of its backward.

        Args:
            weight: The weight.
            updates: What the columns are made of; none for the pretrained weight.
            lease: What a new grant becomes a part of.
            train: Whether the updates are being trained, so that columns will be written often. False has products
                rounded as those of a model that was never trained; None leaves the weight's layout as it is.
            momentary: Whether they may be in the weight during a product only.

        Returns:
            A context that has them in the weight; None for memory that may not be written.
        """
        stay = self.last
        holder = None if stay is None else stay.lease()
        if stay is not None and holder is not None and stay.weight is weight and same_updates(stay.updates, updates):
            if stay.is_pinned_here():
                return Loan(holder, stay)  # within a call that has pinned them
            with _LOCK:
                # Within backward a checkpointed forward is computed again, over what it was computed over at first.
                if stay.held is not None and (_in_backward() or stay.is_current()):
                    return Loan(holder, stay)
        if lies_in_shared_memory(weight):
            return None  # other processes look at it, whenever they like
        with _LOCK:
            is_free = clear(memory_of(weight))  # else another thread multiplies with it as it lies there
            if momentary or (is_free and has_twin(weight)):
                return MomentaryLoan(self, weight, updates)
            if is_free and train and self.connection_dim == 1 and writes_faster_connection_major(weight):
                lay_out_connection_major(weight)
            elif is_free and train is False:
                lay_out_row_major(weight)
            holder = lease or Lease()
            stay = self.last = Stay(holder, self, weight, updates)
            holder.add(stay)
        return Loan(holder, stay)

    def is_in(self, weight: Any) -> bool:
        """Whether a call of this thread has pinned columns of this keeper in a weight."""
        stay = self.last
        return stay is not None and stay.weight is weight and stay.is_pinned_here()

    def pretrained_columns(self, weight: Any, indices: Tensor) -> Tensor:
        """The pretrained values of some connections, connections first.

        Args:
            weight: The weight.
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, …)`.
        """
        make_pretrained(weight)
        rows = self.rows(weight)
        return rows.index_select(0, indices.to(rows.device))

    def would_be(self, weight: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        """The values that the updates give to the union of their connections.

        Args:
            weight: The weight.
            updates: At least one.

        Returns:
            Shape `(n, …)`; of a divided weight, this process's part.
        """
        make_pretrained(weight)
        parts = self.parts(weight, updates)
        indices = connection_union(parts)
        pretrained = self.rows(weight).index_select(0, indices)
        return adapted_columns(pretrained, indices, parts, self.delta_dim)

    @torch.no_grad()
    def write(self, weight: Any, updates: tuple[ColumnUpdate, ...]) -> tuple[Tensor, Tensor]:
        """Make updates a part of the weight for good.

        Args:
            weight: The weight.
            updates: At least one.

        Returns:
            What `restore` needs: the connections, and their pretrained values, connections first.
        """
        parts = self.parts(weight, updates)
        indices, values = connection_union(parts), self.would_be(weight, updates)
        rows = self.rows(weight)
        pretrained = rows.index_select(0, indices)
        rows.index_copy_(0, indices, values)
        return indices, pretrained

    @torch.no_grad()
    def restore(self, weight: Any, kept: tuple[Tensor, Tensor]) -> None:
        """Undo `write`, bit for bit.

        Args:
            weight: The weight.
            kept: What that returned.
        """
        rows = self.rows(weight)
        indices, values = kept
        rows.index_copy_(0, indices.to(rows.device), values.to(rows))

    def __getstate__(self) -> dict[str, Any]:
        """Copied and pickled without a lease."""
        return {**self.__dict__, "last": None, "buffer": None, "block": Block()}


class DepthwiseColumns(Columns):
    """The filters of single channels of a depthwise convolution's weight, `(c·m, 1, *k)`.

    Args:
        channels: `c`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(connection_dim=0, delta_dim=0)
        self.channels = channels

    def rows(self, weight: Any) -> Tensor:
        """A weight's memory with the filters of each channel together, shape `(c, m, *k)`."""
        return weight.detach().unflatten(0, (self.channels, -1)).squeeze(2)


def kept_tensors(model: nn.Module) -> list[Tensor]:
    """The memory that a model keeps beside parameters and buffers, for pretrained columns; for counting bytes.

    Args:
        model: Any model.

    Returns:
        The tensors.
    """
    keepers = (getattr(module, "columns", None) for module in model.modules())
    buffers = (keeper.buffer for keeper in keepers if isinstance(keeper, Columns))
    return [buffer for buffer in buffers if buffer is not None]


def lies_in_shared_memory(weight: Any) -> bool:
    """Whether other processes have the weight's memory as well; on the CPU, for elsewhere PyTorch says so of all."""
    with plainly():
        return weight.is_cpu and weight.untyped_storage().is_shared()


def has_twin(weight: Any) -> bool:
    """Whether another tensor lies over the same memory, such as the weight of a second model.

    One that holds the same parameter can't be told of.
    """
    with plainly():
        if weight.is_meta or type(weight).__name__ == "DTensor":
            return False
        storage = weight.untyped_storage()
        if storage.nbytes() != weight.numel() * weight.element_size():
            return False  # part of a larger piece of memory: its neighbours count as well
        return _USE_COUNT(storage._cdata) > 2  # the weight, and `storage` itself


_USE_COUNT: Any = torch._C._storage_Use_Count  # type: ignore[attr-defined]


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # type: ignore[attr-defined]
