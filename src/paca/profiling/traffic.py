"""Counts the bytes that a rank hands to collectives: what training on several machines costs the network.

Exact and the same on every machine, as bytes of storages are for memory. What an engine then sends over the wires
depends on its algorithm: a ring all-reduce of `b` bytes among `n` ranks sends `2·b·(n−1)/n` per rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# How torch's operators of the namespace c10d are called here. A rank contributes their input; for a gather that is its
# own part, for a scatter the whole that is divided.
_KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "broadcast_": "broadcast",
    "alltoall_base_": "all-to-all",
    "alltoall_": "all-to-all",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "all_reduce": "all-reduce",  # from here on those of functional collectives, which DTensor starts
    "all_gather_into_tensor": "all-gather",
    "reduce_scatter_tensor": "reduce-scatter",
}
_SECOND = {"allgather_", "_allgather_base_", "_reduce_scatter_base_", "reduce_scatter_"}  # (output, input, …)


@dataclass
class Traffic:
    """Bytes by kind of collective, and how many calls they took."""

    bytes: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Bytes of all kinds together."""
        return self.bytes.total()


class _Counting(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func._schema.name.split("::")[1], args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        kind = _KINDS.get(name)
        if kind is None:
            return
        sent = args[1] if name in _SECOND else args[0]
        tensors = [leaf for leaf in tree_leaves(sent) if isinstance(leaf, Tensor)]
        self.traffic.bytes[kind] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.traffic.calls[kind] += 1


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count the collectives that this rank starts inside a `with` block, forward, backward and optimizer alike.

        with count_traffic() as traffic:
            model(batch).loss.backward()
        traffic.bytes["all-reduce"]

    Collectives that compiled code starts are not seen, nor those of libraries that go round torch (NCCL by hand).

    Yields:
        Traffic: The counts, which grow until the block ends.
    """
    traffic = Traffic()
    with _Counting(traffic):
        yield traffic
