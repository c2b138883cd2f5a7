"""Resident columns: while an adapter is shown, the base weight itself holds its columns.

    W[:, I] = W₀[:, I] + s·Δ

So forward and backward are the frozen layer's own GEMMs. One `Columns` keeps one weight. Either the weight is the
pretrained one, or it shows some adapters, and the pretrained values of exactly these columns are kept, to be copied
back bit for bit. It writes only when what it shows has changed.

Columns are kept and written with the connections first: those of a weight of shape `(out, in)` as `(r, out)`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .steps import _KEEPERS


class Term(NamedTuple):
    """One adapter's share of a weight: `scaling · delta`, added to the connections `indices`."""

    indices: Tensor  # (r,), int64, ascending
    delta: Tensor  # the trained parameter itself, its connections where the weight has them: (out, r)
    scaling: float
    pretrained: Tensor | None = None  # other values of W₀[:, I] than the weight's, shaped as `delta`
    gather: Callable[[Tensor, Tensor, torch.dtype], Tensor] | None = None  # of X[..., I], for several layers at once
    retired: bool = False  # trained once, not any more: stays in the weight over the steps of the others


class Kept(NamedTuple):
    """Pretrained values of some connections, connections first."""

    indices: Tensor  # (n,)
    values: Tensor  # (n, …)


class Shown(NamedTuple):
    """What a weight showed at one moment: enough to tell whether it still does, and to show it again."""

    terms: tuple[Term, ...]
    key: tuple[Any, ...]


PRETRAINED = Shown((), ())  # no adapter, the weight is the pretrained one


def connections_first(tensor: Tensor, dim: int) -> Tensor:
    """A view of a weight or an update with the dimension that counts connections in front."""
    return tensor.t() if dim == 1 and tensor.dim() == 2 else tensor.movedim(dim, 0)


def adapted_columns(pretrained: Tensor, indices: Tensor, terms: Sequence[Term], dim: int) -> Tensor:
    """`W₀[:, I] + Σ sₖ·Δₖ`, summed in the widest dtype that takes part and rounded once.

    Args:
        pretrained: The pretrained values of the connections `indices`, connections first: shape `(n, …)`.
        indices: Shape `(n,)`, ascending: the union of the terms' indices.
        terms: The adapters to add.
        dim: The dimension of their deltas that counts connections.

    Returns:
        Shape `(n, …)`, in the dtype of `pretrained`.
    """
    deltas = [connections_first(term.delta.detach().to(pretrained.device), dim) for term in terms]
    if len(terms) == 1:  # the union is the term's own indices
        return torch.add(pretrained, deltas[0], alpha=terms[0].scaling, out=torch.empty_like(pretrained))
    dtype = pretrained.dtype
    for delta in deltas:
        dtype = torch.promote_types(dtype, delta.dtype)
    total = pretrained.to(dtype, copy=True)
    for term, delta in zip(terms, deltas, strict=True):
        rows = torch.searchsorted(indices, term.indices)
        total.index_add_(0, rows, delta.to(dtype), alpha=term.scaling)
    return total.to(pretrained.dtype)


def connection_union(terms: Sequence[Term]) -> Tensor:
    """The connections that any of the terms touches, ascending, each once; shape `(n,)`."""
    if len(terms) == 1:
        return terms[0].indices
    return torch.unique(torch.cat([term.indices for term in terms]))


def writes_faster_connection_major(weight: Tensor) -> bool:
    """Whether to keep a `(out, in)` weight with each connection in one contiguous run of memory while it is trained.

    In a row-major weight every element of a column lies in a cache line of its own, and on the CPU writing the
    columns after each step is bound by that traffic. Its float32 and float64 GEMMs take both layouts equally fast;
    its bfloat16 ones do not (measured: ten times slower), and GPUs write scattered columns fast enough.
    """
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and weight.dim() == 2
        and weight.is_contiguous()
        and not weight.is_shared()
        and weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
    )


def _version(tensor: Tensor) -> int:
    # An inference tensor has no version counter; it cannot be written outside of inference mode either.
    return 0 if tensor.is_inference() else tensor._version


class ColumnKeeper:
    """What every way of keeping a weight's columns shares: telling whether what a forward pass saw still holds.

    Args:
        delta_dim: The dimension of the deltas that counts connections.
    """

    eager = False  # whether columns are written as soon as something changes, as when `writes_eagerly()`

    def __init__(self, delta_dim: int) -> None:
        self.delta_dim = delta_dim
        self.shown: Shown | None = None
        self.kept: Any = None  # what brings the pretrained weight back
        self.pinned = False  # merged: what is shown stays until it is taken out by name
        self.stale = False  # shown are columns of before an optimizer step; nobody may use or see them
        self._steps = 0  # optimizer steps that changed a delta shown here

    def invalidate(self) -> None:
        """Have the next `show` look anew, after a change that no version counter tells of."""
        self._steps += 1
        self.stale = self.shown is not None and not self.pinned

    def pin(self) -> None:
        """Merge what is shown: it stays until `take_out`, whatever optimizers do."""
        self.pinned = True

    def adopt(self, kept: Any, shown: Shown) -> None:
        """Take over what was merged into this weight by another keeper, whose copy or conversion the weight is.

        Args:
            kept: What that one kept.
            shown: What it showed.
        """
        self.kept, self.shown, self.pinned = kept, shown, True

    def refresh(self) -> None:
        """Write the shown columns again, whether or not anything seems to have changed."""
        raise NotImplementedError

    def take_out(self) -> None:
        """Make the weight the pretrained one."""
        raise NotImplementedError

    def _key(self, terms: tuple[Term, ...]) -> tuple[Any, ...]:
        return (self._steps, *((id(term.delta), _version(term.delta), term.scaling) for term in terms))

    def is_current(self) -> bool:
        """Whether nothing has changed, as far as version counters tell, since the shown columns were written."""
        return self.shown is not None and self._key(self.shown.terms) == self.shown.key

    def _require_unchanged(self, shown: Shown) -> None:
        """Refuse to show again what cannot be shown any more."""
        if self.pinned or self._key(shown.terms) != shown.key:
            raise RuntimeError(
                "The columns that this forward pass used were changed before its backward pass (an optimizer step, a "
                "load or a merge in between), so its gradients can no longer be computed. Call backward() first."
            )

    def _watch(self, terms: tuple[Term, ...]) -> None:
        """Be told of optimizer steps that change the terms' deltas."""
        for term in terms:
            if _KEEPERS.get(id(term.delta)) is not self:
                _KEEPERS[id(term.delta)] = self


def kept_tensors(model: nn.Module) -> list[Tensor]:
    """What a model keeps beside parameters and buffers to bring its pretrained weights back; for counting bytes.

    Args:
        model: Any model.

    Returns:
        The tensors that lie on the device of the weight that they belong to.
    """
    found = []
    for module in model.modules():
        keeper = getattr(module, "columns", None)
        if isinstance(keeper, ColumnKeeper):
            device = next(module.parameters()).device
            leaves = tree_leaves([keeper.kept, getattr(keeper, "under", None)])
            found += [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device == device]
    return found


class Columns(ColumnKeeper):
    """Keeps the columns of one weight: shows adapters in it, and puts the pretrained values back.

    Args:
        weight: The weight.
        connection_dim: Its dimension that counts connections.
        delta_dim: The dimension of the deltas that does.
    """

    def __init__(self, weight: Tensor, connection_dim: int, delta_dim: int) -> None:
        super().__init__(delta_dim)
        self._weight = weakref.ref(weight)  # an engine that puts shards in its place must be able to free it
        self.connection_dim = connection_dim
        self.kept: Kept | None = None  # the pretrained values of the connections that are shown, or were last
        self.under: Kept | None = None  # on the CPU, the pretrained values of retired connections
        self._under_of: tuple[Term, ...] = ()  # the terms of these connections
        self._laid = False  # whether the weight shows them
        self._layout_chosen = False  # whether the memory layout for training was decided
        self._relaid = False  # whether it differs from the weight's own
        self._version = _version(weight)
        self._handed_out: list[weakref.ref[Tensor]] = []

    @property
    def weight(self) -> Any:
        """The weight, or None if nobody else has it any more."""
        return self._weight()

    @property
    def rows(self) -> Tensor:
        """The weight's memory, connections first: what is written through it is not seen by autograd."""
        return self.first(self.weight.data)

    def first(self, weight: Tensor) -> Tensor:
        """A view of the weight, or of a tensor like it, with the connections in front.

        Args:
            weight: Of the weight's shape.

        Returns:
            Shape `(connections, …)`.
        """
        return connections_first(weight, self.connection_dim)

    def show(self, terms: tuple[Term, ...], train: bool = False) -> Shown:
        """Make the weight hold `W₀[:, I] + Σ sₖ·Δₖ`; does nothing if it does already.

        Args:
            terms: The adapters to show, at least one.
            train: Whether the deltas are being trained, so that columns will be written often.

        Returns:
            The record of what the weight now shows.
        """
        if train and not self._layout_chosen:
            self._settle()
        key = self._key(terms)
        if self.shown is not None and self.shown.key == key:
            return self.shown
        return self._write(Shown(terms, key))

    def show_again(self, shown: Shown | None) -> None:
        """Make the weight hold what it held in an earlier forward, for that forward's backward.

        Args:
            shown: What `show` returned then.

        Raises:
            RuntimeError: If a delta was changed since, or columns were merged, so that these cannot be shown.
        """
        held = None if self.stale else self.shown
        if shown is None or shown is held or (held is not None and shown.key == held.key):
            return
        if not shown.terms and not self.pinned:
            self.take_out()
            return
        self._require_unchanged(shown)
        self._write(shown)

    def refresh(self) -> None:
        """Write the shown columns again, whether or not anything seems to have changed."""
        if self.shown is not None:
            terms = self.shown.terms
            self._write(Shown(terms, self._key(terms)))

    def take_out(self) -> None:
        """Copy the pretrained values back, bit for bit.

        The copy of them stays, for the next `show`, as long as nobody else writes into the weight.
        """
        weight = self.weight
        if self.shown is not None and weight is not None:
            self._put_back(self.rows)
            self._version = _version(weight)  # whoever writes into the weight from now on outdates the copy
        self._laid = False
        self.shown = None
        self.pinned = self.stale = False

    def release(self) -> None:
        """`take_out`, keep nothing, and give the weight its ordinary memory layout back: it was never adapted."""
        self.take_out()
        self.kept = self.under = None
        self._under_of = ()
        if self._relaid:
            self.weight.data = self.weight.data.contiguous()
        self._layout_chosen = self._relaid = False

    def hand_out(self, alias: Tensor) -> None:
        """Promise that `alias`, which shares the weight's memory, keeps the pretrained values.

        Most such tensors (an entry of a state dict, say) are gone before the columns are written again, and cost
        nothing. One that is still alive then gets memory of its own.

        Args:
            alias: A tensor over the whole weight, taken while nothing was shown.
        """
        self._handed_out = [ref for ref in self._handed_out if ref() is not None]
        self._handed_out.append(weakref.ref(alias))

    def pretrained_copy(self) -> Tensor:
        """A copy of the weight with the pretrained values; the weight stays as it is."""
        copy = self.weight.detach().clone(
            memory_format=torch.contiguous_format if self._relaid else torch.preserve_format
        )
        if self.shown is not None:
            self._put_back(self.first(copy))
        return copy

    def _put_back(self, rows: Tensor) -> None:
        """Copy the kept values into a weight that shows terms: those on top first."""
        for kept in (self.kept, self.under if self._laid else None):
            if kept is not None:
                rows.index_copy_(0, kept.indices.to(rows.device), kept.values.to(rows.device))

    def pretrained_columns(self, indices: Tensor) -> Tensor:
        """The pretrained values of some connections, connections first; the weight stays as it is.

        Args:
            indices: Shape `(n,)`.

        Returns:
            Shape `(n, …)`.
        """
        weight = self.weight.data if self.shown is None else self.pretrained_copy()
        return self.first(weight).index_select(0, indices.to(weight.device))

    def would_show(self, terms: tuple[Term, ...]) -> Tensor:
        """The values that `show` would write for the terms, of the same shape as what it writes.

        Args:
            terms: The adapters.

        Returns:
            Shape `(n, …)`, for the union of their connections.
        """
        indices = connection_union(terms)
        return adapted_columns(self.pretrained_columns(indices), indices, self._own(terms), self.delta_dim)

    def _settle(self) -> None:
        """Choose the memory layout in which the columns are written fastest, once, before the first training step."""
        self._layout_chosen = True
        if self.connection_dim == 1 and writes_faster_connection_major(self.weight):
            self.weight.data = self.weight.data.t().contiguous().t()
            self._relaid = True

    def _write(self, shown: Shown) -> Shown:
        self._detach_handed_out()
        self._write_terms(shown.terms)
        self._watch(tuple(term for term in shown.terms if not term.retired))
        self.shown = shown
        self.stale = False
        return shown

    def _write_terms(self, terms: tuple[Term, ...]) -> None:
        self._lay_under(tuple(term for term in terms if term.retired))
        terms = tuple(term for term in terms if not term.retired)
        indices = connection_union(terms)
        if self.shown is None and self._version != _version(self.weight):
            self.kept = None  # someone else has written into the weight: the copy is out of date
        kept = self.kept
        if kept is None or kept.indices is not indices:
            if self.shown is not None and kept is not None:
                self._put(kept.indices, kept.values)
            self.kept = kept = Kept(indices, self.rows.index_select(0, indices.to(self.rows.device)))
        self._put(indices, adapted_columns(kept.values, indices, self._own(terms), self.delta_dim))

    def _put(self, indices: Tensor, values: Tensor) -> None:
        rows = self.rows
        rows.index_copy_(0, indices.to(rows.device), values)

    def _own(self, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        """The terms as this weight's memory needs them."""
        return terms

    def _lay_under(self, terms: tuple[Term, ...]) -> None:
        """Have the weight hold the retired terms and no others, below what is trained.

        What was trained once changes no more: the pretrained values under it, and those of the trained connections,
        are read from the weight once for each set of retired terms.
        """
        same = len(terms) == len(self._under_of) and all(map(_is_same_term, terms, self._under_of))
        if same and (self._laid or not terms):
            return
        self.take_out()
        if not same or self._version != _version(self.weight):
            self.kept = self.under = None
        self._under_of = terms
        if not terms:
            return
        indices, rows = connection_union(terms), self.rows
        if self.under is None:
            self.under = Kept(indices, rows.index_select(0, indices.to(rows.device)).cpu())
        values = self.under.values.to(rows.device)
        self._put(indices, adapted_columns(values, indices, self._own(terms), self.delta_dim))
        self._laid = True

    def _detach_handed_out(self) -> None:
        for ref in self._handed_out:
            alias = ref()
            if alias is not None and alias.untyped_storage().data_ptr() == self.rows.untyped_storage().data_ptr():
                alias.data = alias.data.clone()
        self._handed_out.clear()


def _is_same_term(one: Term, other: Term) -> bool:
    return one.delta is other.delta and one.indices is other.indices and one.scaling == other.scaling
