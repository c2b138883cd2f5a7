"""One gather and one kept slice for layers that read the same input at the same connections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef


class SharedGather:
    """Gathers `X[..., I]` once for several layers.

    Nothing is kept alive here: the slice lives as long as one of the layers' backward passes needs it. Whether the
    layers do read one tensor, and at equal indices, is looked at in every call, so that sharing cannot be wrong.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._x: Any = None
        self._slice: Any = None
        self._version = 0
        self._indices: Tensor | None = None
        self._first_version = 0
        self._equal: dict[int, tuple[Tensor, int, int]] = {}  # indices known to equal `_indices`, with both versions

    def __call__(self, x: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """The slice of the input.

        Args:
            x: Shape `(..., in)`.
            indices: Shape `(r,)`.
            dtype: Of the slice.

        Returns:
            `X[..., I]`, shape `(..., r)`, without a graph.
        """
        kept = None if self._slice is None else self._slice()
        same = kept is not None and kept.dtype == dtype and self._x() is x and self._version == x._version
        if kept is not None and same and self._equals(indices):
            return kept
        kept = x.detach().index_select(-1, indices).to(dtype)
        self._x, self._slice, self._version = TensorWeakRef(x), TensorWeakRef(kept), x._version
        if indices is not self._indices or indices._version != self._first_version:
            self._indices, self._first_version, self._equal = indices, indices._version, {}
        return kept

    def _equals(self, indices: Tensor) -> bool:
        first = self._indices
        if first is None or first._version != self._first_version:
            return False
        if indices is first:
            return True
        known = self._equal.get(id(indices))
        versions = (indices._version, first._version)
        if known is None or known[0] is not indices or known[1:] != versions:
            if first.device != indices.device or not torch.equal(first, indices):
                return False
            self._equal[id(indices)] = (indices, *versions)
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Copied and pickled empty; layers that share one go on sharing one."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()
