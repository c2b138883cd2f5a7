"""Columns that are in a weight for one product alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .lease import Layout, Lease, Loan, Stay, View, both
from .update import ColumnUpdate


class MomentaryLoan:
    """Columns that are in the weight for the moment of a product, and out again after it.

    For memory that others look at between a forward and its backward: a weight that a second module has as well, or
    one that FSDP2 has gathered and may free and gather again. Backward needs the columns of its forward, whatever has
    become of the updates; so these are kept.

    Args:
        columns: Knows the weight's layout.
        weight: The weight.
        updates: What its columns are made of.
        view: Makes what is multiplied with out of the weight.
        fixed: The columns' values, once they have been computed; shared by the loans of one forward.
    """

    def __init__(
        self,
        columns: Layout,
        weight: Any,
        updates: tuple[ColumnUpdate, ...],
        view: View = None,
        fixed: list[Tensor] | None = None,
    ) -> None:
        self.columns = columns
        self.weight = weight
        self.updates = updates
        self.fixed: list[Tensor] = [] if fixed is None else fixed
        self._view = view
        self._loan: Loan | None = None
        self.dtype: torch.dtype | None = None  # as that of a `Loan`

    def viewed(self, view: Callable[[Tensor], Tensor]) -> MomentaryLoan:
        """Another loan of the same columns, for a product with a view of the weight."""
        return MomentaryLoan(self.columns, self.weight, self.updates, both(self._view, view), self.fixed)

    def __enter__(self) -> Tensor:
        lease = Lease()
        stay = Stay(lease, self.columns, self.weight, self.updates, self.fixed or None)
        lease.stays.append(stay)
        self._loan = Loan(lease, stay, self._view)
        weight = self._loan.__enter__()
        if not self.fixed and stay.held is not None:
            self.fixed += stay.read()
        return weight

    def __exit__(self, *_: object) -> None:
        if self._loan is not None:
            self._loan.__exit__()
            self._loan = None

    def finish(self) -> None:
        """Let go of the columns: backward has passed."""
