"""Merging: an adapter's columns become part of the base weight, for whoever looks at it, and can leave it again."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor

from ...errors import PacaError
from ...method.columns.resident import Term
from .adapters import AdapterLayer


class MergingLayer(AdapterLayer):
    """A layer whose adapters can be merged, unmerged and switched off."""

    converts_to_lora: ClassVar[bool] = True  # PEFT's conversion is one of matrices that a layer multiplies with

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense update `s·Δ`, zero in all columns but the adapter's.

        Args:
            adapter: Its name.

        Returns:
            A tensor of the base weight's shape, in the dtype of `Δ`.
        """
        indices, delta = self.whole_update(adapter)
        dense = delta.new_zeros(self._weight_shape())
        update = (delta * self.scaling[adapter]).movedim(self.delta_dim, self.connection_dim)
        return dense.index_copy(self.connection_dim, indices, update)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Make the adapters' columns part of the base weight, for everyone who looks at it.

        Merging one after the other equals merging all at once: the sum is taken from the pretrained values.

        Args:
            safe_merge: Check first that all merged values are finite.
            adapter_names: The adapters; None merges the active ones.

        Raises:
            PacaError: If `safe_merge` finds a value that is not finite; nothing was changed then.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.paca_delta]
        if not names:
            return
        self._adopt_weight()
        merged = [*self.merged_adapters, *names]
        self.check_merge(names, safe_merge)
        self._merge_terms(self._terms(merged))
        self.merged_adapters = merged

    def _merge_terms(self, terms: tuple[Term, ...]) -> None:
        """Make the base weight hold these terms, and no others, until `_unmerge_terms`."""
        self.columns.release()
        self.columns.show(tuple(term._replace(retired=False) for term in terms))
        self.columns.pin()

    def _unmerge_terms(self) -> None:
        """Make the base weight the pretrained one."""
        self.columns.release()

    def check_merge(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """All that `merge` checks, without merging.

        Args:
            adapter_names: The adapters that would be merged; None takes the active ones.
            safe_merge: Whether merged values have to be finite.
        """
        if safe_merge:
            self.check_finite(adapter_names)

    def check_finite(self, adapter_names: list[str] | None = None, dtype: torch.dtype | None = None) -> None:
        """Check that all merged values would be finite.

        Args:
            adapter_names: The adapters that would be merged; None takes the active ones.
            dtype: In which; None for the base weight's own.

        Raises:
            PacaError: If a merged value would not be finite.
        """
        names = [name for name in adapter_names or self.active_adapters if name not in self.merged_adapters]
        terms = self._terms([*self.merged_adapters, *names])
        columns = self.columns.would_show(terms) if terms else torch.empty(0)
        columns = columns if dtype is None else columns.to(dtype)
        if not columns.isfinite().all():
            raise PacaError(
                f"NaNs detected in the merged weights: adapter {', '.join(names)} holds NaN or infinite values, or "
                f"values beyond {columns.dtype}. Nothing was merged."
            )

    def unmerge(self) -> None:
        """Put the pretrained values back, bit for bit."""
        self._remerge = []
        self._adopt_weight()
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merged_adapters = []
        self._unmerge_terms()
        self._follow_change()

    def enable_adapters(self, enabled: bool) -> None:
        """Show the adapters, or the pretrained layer; merged ones are unmerged meanwhile and merged again after.

        Args:
            enabled: Whether the adapters take part.
        """
        self._adopt_weight()
        if not enabled:
            self._remerge = self._remerge or list(self.merged_adapters)
            self.merged_adapters = []
            self._unmerge_terms()
        super().enable_adapters(enabled)
        if enabled and self._remerge:
            names, self._remerge = self._remerge, []
            self.merge(adapter_names=names)
        self._follow_change()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can make a LoRA of an adapter; of a linear layer, `s·Δ` at `r` columns is one of rank `r`.

        Args:
            adapter_name: Any; it holds for all.

        Returns:
            Whether it can.
        """
        return self.converts_to_lora
