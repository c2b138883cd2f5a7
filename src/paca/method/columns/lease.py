"""Columns are in a base weight only while somebody holds a lease on them.

Between calls every base weight has its pretrained values, bit for bit. While a call needs its columns, they are in it,

    W[:, I] = W₀[:, I] + s·Δ,

so that forward and backward are the frozen layer's own GEMMs. A `Lease` says "these columns are in". It is held by the
call on the stack and by the autograd contexts of its graph; when the last of them lets go of it, by the end of
backward or because the graph is freed, `W₀[:, I]` is copied back. Each grant writes from `Δ` as it is then, so nothing
has to tell that `Δ` has changed.

`Stay` is one weight's part of a lease, `Loan` what an autograd function gets: `with loan as weight:` has the columns
in the weight for one product.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, RLock, get_ident
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .block import Block, Where, put, same_bits, take
from .together import KERNEL_DEVICES, kernels_for
from .update import ColumnUpdate, adapted_columns, connection_union, same_updates

View = Callable[[Tensor], Tensor] | None

plainly = torch._C.DisableTorchFunctionSubclass  # a context in which a weight of any layout is an ordinary tensor

# Taken for the moment of a write or a count, never during a product. Reentrant, since a lease may end wherever memory
# is allocated: the garbage collector frees graphs that are part of a cycle.
_LOCK = RLock()
_UNPINNED = Condition(_LOCK)  # told whenever a thread is through with columns that others wait for
_WAITING: list[int] = []  # the threads that do
PATIENCE = 600.0  # seconds for which a thread waits for the calls of others

# The memory that holds columns now. One table for the process, because models may have weights in common, and only the
# memory tells.
_INSIDE: dict[tuple[int, int], Stay] = {}


class Layout(Protocol):
    """How the columns of a weight lie in it; see `resident.Columns`."""

    delta_dim: int
    block: Block
    merged: tuple[ColumnUpdate, ...]

    def rows(self, weight: Any) -> Tensor:
        """A weight's memory, connections first."""

    def parts(self, weight: Any, updates: tuple[ColumnUpdate, ...]) -> tuple[ColumnUpdate, ...]:
        """The updates as this process's part of the weight needs them."""

    def read(self, rows: Tensor, where: Where, retired: bool = False) -> Tensor:
        """Copies of some columns."""

    def memory_for(self, rows: Tensor, where: Where) -> Tensor:
        """Memory for copies of some columns."""

    def keep_buffer(self, kept: list[tuple[Where, Tensor]]) -> None:
        """Keep the memory of copies that are not needed any more."""


CHANGED = (
    "The columns that this forward pass used were changed before its backward pass (an optimizer step, a load or a "
    "merge in between), so its gradients can no longer be computed. Call backward() first."
)


class Lease:
    """Columns are in some weights for as long as anybody holds this object.

    As a context it pins them: no other thread may take them out meanwhile.
    """

    __slots__ = ("__weakref__", "_gathers", "_retracts", "callers", "stays")

    def __init__(self) -> None:
        self.stays: list[Stay] = []
        self._gathers = False  # whether columns are put in later, all together
        self.callers: dict[int, int] = {}  # how often each thread has pinned the columns
        self._retracts = False  # whether the columns come out when nobody pins them any more
        # Not in __del__: while that waits for the lock, another thread could take up the lease once more.
        weakref.finalize(self, _put_back, self.stays).atexit = False  # type: ignore[misc]

    def __enter__(self) -> Lease:
        me = get_ident()
        with _LOCK:
            self.callers[me] = self.callers.get(me, 0) + 1
        return self

    def __exit__(self, *_: object) -> None:
        me = get_ident()
        with _LOCK:
            left = self.callers.pop(me) - 1
            if left:
                self.callers[me] = left
            elif _WAITING:
                _UNPINNED.notify_all()
            if self._retracts:
                self.retract()

    def add(self, stay: Stay) -> None:
        """Make a weight's columns a part of the lease, and put them in; within `together`, at its end."""
        self.stays.append(stay)
        if not self._gathers:
            stay.put_in()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Have columns that are added within put in at its end, those of all weights in one go."""
        self._gathers = True
        with _LOCK:
            try:
                yield
            finally:
                self._gathers = False
            _put_in_together(self.stays)

    def retract(self) -> None:
        """Take the columns out although somebody holds the lease; a backward pass may put them in again.

        They stay in until the calls that have pinned them, in whatever thread, are through.
        """
        with _LOCK:
            self._retracts = bool(self.callers)
            if not self.callers:
                for stay in self.stays:
                    stay.retract()


def _put_in_together(stays: list[Stay]) -> None:
    """Put in the columns of many weights: those that a kernel writes in one go, the others one after the other."""
    groups: dict[Any, list[tuple[Stay, Held]]] = {}
    places: set[tuple[int, int]] = set()
    alone = []
    for stay in stays:
        held = stay.held_by_kernel()
        if held is None or held.place in places or not clear(held.place):
            alone.append(stay)
        else:
            places.add(held.place)
            groups.setdefault(held.part.kernels, []).append((stay, held))
    for kernels, group in groups.items():
        kernels.put_in([held.part for _, held in group])
        for stay, held in group:
            stay.hold(held)
    for stay in alone:
        stay.put_in()


def _put_back(stays: list[Stay]) -> None:
    with _LOCK:
        groups: dict[Any, list[tuple[Stay, Held]]] = {}
        for stay in stays:
            if stay.held is not None and stay.held.part is not None:
                groups.setdefault(stay.held.part.kernels, []).append((stay, stay.held))
            else:
                stay.put_back()
        for kernels, group in groups.items():
            kernels.put_back([held.part for _, held in group])
            for stay, _ in group:
                stay.let_go()


class Held(NamedTuple):
    """What some memory holds in place of its pretrained values."""

    place: tuple[int, int]  # see `memory_of`
    rows: Tensor  # the memory, connections first
    kept: list[tuple[Where, Tensor]]  # what was written over: connections, pretrained values
    part: Any = None  # the share of the kernel that moves them, if one does


class Stay:
    """The columns of one weight under a lease: in the weight, or out of it for now.

    Args:
        lease: The lease.
        columns: Knows the weight's layout.
        weight: The weight.
        updates: What its columns are made of; none for the pretrained weight.
        fixed: Their values, if they have been computed already.
    """

    __slots__ = ("callers", "columns", "fixed", "held", "lease", "updates", "weight", "written")

    def __init__(
        self,
        lease: Lease,
        columns: Layout,
        weight: Any,
        updates: tuple[ColumnUpdate, ...],
        fixed: list[Tensor] | None = None,
    ) -> None:
        self.lease = weakref.ref(lease)
        self.callers = lease.callers
        self.columns = columns
        self.weight = weight
        self.updates = updates
        self.held: Held | None = None  # None while the columns are out
        self.written: list[Tensor] | None = None  # what was in the weight, if the columns have been retracted
        self.fixed = fixed

    def put_in(self) -> bool:
        """Write the columns, over those of another lease if need be.

        Returns:
            Whether they are in; not if another thread computes with other columns of this memory at the moment.

        Raises:
            RuntimeError: If they were in before and would be others now.
        """
        place = memory_of(self.weight)
        if place in _INSIDE and not clear(place):
            return False
        rows = self.columns.rows(self.weight)
        self.hold(Held(place, rows, self._write(rows)))
        return True

    def held_by_kernel(self) -> Held | None:
        """What the weight will hold once a kernel has put its columns in; None if none can."""
        if self.weight.device.type not in KERNEL_DEVICES or len(self.updates) != 1:
            return None
        if self.columns.merged or self.fixed is not None or self.written is not None:
            return None
        (update,) = self.columns.parts(self.weight, self.updates)
        rows = self.columns.rows(self.weight)
        kernels = None if update.retired else kernels_for(rows, update)
        if kernels is None:
            return None
        kept = self.columns.memory_for(rows, update.indices)
        part = kernels.part(rows, update, self.columns.delta_dim, kept)
        return Held(memory_of(self.weight), rows, [(update.indices, kept)], part)

    def hold(self, held: Held) -> None:
        """From now on the columns are in."""
        self.held, self.written = held, None
        _INSIDE[held.place] = self

    def let_go(self) -> None:
        """From now on they are out; nothing happens if they are: the garbage collector ends leases at any moment."""
        held, self.held = self.held, None
        if held is not None:
            del _INSIDE[held.place]
            self.columns.keep_buffer(held.kept)

    def _write(self, rows: Tensor) -> list[tuple[Where, Tensor]]:
        """Write the columns into a weight that is pretrained; returns what was written over."""
        kept: list[tuple[Where, Tensor]] = []
        if self.columns.merged:
            if same_updates(self.columns.merged, self.updates):
                return kept
            raise RuntimeError(CHANGED)
        for indices, updates in self._groups():
            where = self.columns.block.of(indices)
            pretrained = self.columns.read(rows, where, updates[0].retired)
            if self.fixed is None:
                values = adapted_columns(pretrained.to(rows.device), indices, updates, self.columns.delta_dim)
            else:
                values = self.fixed[len(kept)]
            if self.written is not None and not same_bits(values, self.written[len(kept)]):
                _copy_back(rows, kept)
                raise RuntimeError(CHANGED)
            put(rows, where, values)
            kept.append((where, pretrained))
        return kept

    def _groups(self) -> list[tuple[Tensor, tuple[ColumnUpdate, ...]]]:
        """The updates in the order in which they are written: retired ones lie below those that are trained."""
        parts = self.columns.parts(self.weight, self.updates)
        if len(parts) == 1:
            return [(parts[0].indices, parts)]
        below = tuple(update for update in parts if update.retired)
        above = tuple(update for update in parts if not update.retired) if below else parts
        return [(connection_union(group), group) for group in (below, above) if group]

    def put_back(self) -> None:
        """Copy the pretrained values back."""
        if self.held is not None:
            _copy_back(self.held.rows, self.held.kept)
            self.let_go()

    def retract(self) -> None:
        """Copy the pretrained values back, and remember what was there, in case a backward pass needs it again."""
        if self.held is not None:
            self.written = self.read() or None
            self.put_back()

    def read(self) -> list[Tensor]:
        """What is in the weight where something was written over."""
        held = self.held
        return [] if held is None else [take(held.rows, where) for where, _ in held.kept]

    def is_pinned_here(self) -> bool:
        """Whether a call of this thread has the columns in the weight, so that nobody takes them out."""
        return self.held is not None and get_ident() in self.callers

    def is_pinned_elsewhere(self) -> bool:
        """Whether another thread computes with the columns."""
        me = get_ident()
        return any(thread != me for thread in self.callers)

    def is_current(self) -> bool:
        """Whether the weight holds what the updates of now would write."""
        held = self.held
        if held is None or not held.kept:
            return held is not None
        (where, pretrained), (indices, updates) = held.kept[-1], self._groups()[-1]
        values = adapted_columns(pretrained.to(held.rows.device), indices, updates, self.columns.delta_dim)
        return same_bits(values, take(held.rows, where))

    def private_copy(self) -> Tensor:
        """A copy of the weight with these columns, while the weight itself holds another thread's."""
        with plainly():
            copy: Tensor = self.weight.detach().clone()
        rows = self.columns.rows(copy)
        inside = _INSIDE.get(memory_of(self.weight))
        if inside is not None and inside.held is not None:
            _copy_back(rows, inside.held.kept)
        self._write(rows)
        return copy


class Loan:
    """Columns for the products of one layer in one forward pass, and for those of its backward.

    As a context it has the columns in the weight, and yields the weight. Whoever multiplies sets `dtype`, that of the
    product, before: a weight of another kind is made in it.

    Args:
        lease: Holds the columns in the weight from forward to backward.
        stay: The weight's part of it.
        view: Makes what is multiplied with out of the weight: some rows of it, say.
    """

    __slots__ = ("_pinned", "_view", "dtype", "lease", "stay")

    def __init__(self, lease: Lease | None, stay: Stay, view: View = None) -> None:
        self.lease = lease
        self.stay = stay
        self._view = view
        self._pinned = False

    def viewed(self, view: Callable[[Tensor], Tensor]) -> Loan:
        """Another loan of the same columns, for a product with a view of the weight."""
        return self if self.lease is None else Loan(self.lease, self.stay, both(self._view, view))

    def __enter__(self) -> Tensor:  # with little code, like `__exit__`: both are on the path of every product
        stay, me = self.stay, get_ident()
        weight = stay.weight
        if stay.held is None or me not in stay.callers:  # else part of a call that has pinned them
            if self.lease is None:
                raise RuntimeError(CHANGED)
            with _LOCK:
                if stay.held is not None or stay.put_in():
                    stay.callers[me] = stay.callers.get(me, 0) + 1
                    self._pinned = True
                else:
                    weight = stay.private_copy()
        return weight if self._view is None else self._view(weight)

    def __exit__(self, error: object = None, *_: object) -> None:
        if self._pinned and self.lease is not None:
            self._pinned = False
            if error is not None:
                self.lease.retract()  # the traceback may keep the lease
            self.lease.__exit__()

    def finish(self) -> None:
        """Let go of the columns: backward has passed."""
        if torch._C._autograd._get_current_graph_task_keep_graph():  # type: ignore[attr-defined]
            with _LOCK:
                if not self.stay.is_pinned_elsewhere():
                    self.stay.retract()  # a second backward pass puts them in again
                elif self.lease is not None:
                    self.lease.retract()
        else:
            self.lease = None


def both(first: View, second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """One view after another."""
    return second if first is None else lambda weight: second(first(weight))


def clear(place: tuple[int, int]) -> bool:
    """Have some memory hold its pretrained values, unless another thread computes with what is in it.

    Args:
        place: See `memory_of`.

    Returns:
        Whether it holds them.
    """
    inside = _INSIDE.get(place)
    if inside is None:
        return True
    if inside.is_pinned_elsewhere():
        return False
    inside.retract()
    return True


def make_pretrained(weight: Any) -> None:
    """Take the columns out of a weight that somebody is about to read or to write as a whole.

    Waits until other threads are through with the calls that compute with them; except within such a call of this
    thread's own, for two that wait for each other would wait for ever. Then the columns stay in.

    Args:
        weight: Any tensor, or None.

    Raises:
        RuntimeError: If the others don't come to an end.
    """
    if weight is None or not _INSIDE:
        return
    place = memory_of(weight)

    def is_free() -> bool:
        inside = _INSIDE.get(place)
        return inside is None or not inside.is_pinned_elsewhere() or inside.is_pinned_here()

    with _LOCK:
        _WAITING.append(get_ident())
        try:
            is_through = _UNPINNED.wait_for(is_free, PATIENCE)
        finally:
            _WAITING.remove(get_ident())
        if not is_through:
            raise RuntimeError(
                f"Another thread has been computing with an adapted weight for {PATIENCE:.0f} s, so that its "
                "pretrained values cannot be read. Let its call end first: a state dict, a copy or a merge needs them."
            )
        clear(place)


def memory_of(weight: Any) -> tuple[int, int]:
    """What identifies the memory of a weight; the same for all tensors over it."""
    with plainly():
        local = weight.to_local() if type(weight).__name__ == "DTensor" else weight
        return local.untyped_storage()._cdata, local.storage_offset()


def is_pinned(weight: Any) -> bool:
    """Whether a call of any thread has columns in a weight at the moment."""
    inside = _INSIDE.get(memory_of(weight))
    return inside is not None and bool(inside.callers)


def _copy_back(rows: Tensor, kept: list[tuple[Where, Tensor]]) -> None:
    for where, values in reversed(kept):
        put(rows, where, values.to(rows.device))
