"""Merging a model's adapters into its base weights, in all layers or in none."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from .layers.base import PacaLayer
from .layers.find import PEFT_PREFIX, paca_layers, shared_places
from .layers.quantized import QuantizedLinear
from .layers.unquantized import unquantize, unquantized_linear

logger = logging.getLogger("paca.tuner.model")


class MergedModel(BaseTuner):
    """A model whose adapters can be merged, and taken out."""

    _places: dict[int, list[tuple[nn.Module, str]]]

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        self._places = shared_places(self.model)
        named = paca_layers(self.model)
        layers = named.values()
        if merge:
            _check_merge(layers, kwargs.get("adapter_names"), kwargs.get("safe_merge", False))
        for layer in layers:
            if not layer.merged_adapters:
                layer.columns.release()
        base_model = super()._unload_and_optionally_merge(merge=merge, **kwargs)
        if merge:
            _report_merge_errors(named)
        for layer in layers:
            layer.columns.pin()  # a backward pass of before must not write into a weight that nobody keeps
        return base_model

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Make adapters' columns part of the base weights, in every layer or, if `safe_merge` objects, in none.

        Args:
            adapter_names: The adapters; None merges the active ones.
            safe_merge: Check first that all merged values are finite.
        """
        _check_merge(paca_layers(self.model).values(), adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        _report_merge_errors(paca_layers(self.model))

    @torch.no_grad()
    def merge_and_dequantize(
        self, dtype: torch.dtype = torch.bfloat16, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge adapters of a quantized model into an ordinary one, exactly: nothing is packed again.

        The model is converted layer by layer. It can be saved and loaded like one that was never quantized.

            merged = model.merge_and_dequantize(torch.bfloat16)
            merged.save_pretrained("merged")

        Args:
            dtype: Of all weights of the result.
            adapter_names: The adapters; None merges the active ones.

        Returns:
            The base model, without adapters and without quantization.
        """
        layers = paca_layers(self.model).values()
        for layer in layers:
            layer.check_finite(adapter_names, dtype)
        for layer in layers:
            if isinstance(layer, QuantizedLinear):
                layer.base_layer = unquantized_linear(layer.base_layer, layer.adapted_matrix(dtype, adapter_names))
            else:
                layer.merge(adapter_names=adapter_names)
        base_model: Any = self.unload()
        return unquantize(base_model, dtype)


def _check_merge(layers: Iterable[PacaLayer], adapter_names: list[str] | None, safe_merge: bool) -> None:
    for layer in layers:
        layer.check_merge(adapter_names, safe_merge)


def _report_merge_errors(layers: dict[str, PacaLayer]) -> None:
    """Log what packing the merged weights again has cost, layer by layer."""
    for name, layer in layers.items():
        if isinstance(layer, QuantizedLinear) and layer.merge_error is not None:
            logger.info(
                "merged into %s (%s): relative error of the weight %.2e",
                *(name.removeprefix(PEFT_PREFIX), layer.backend.backend_name, layer.merge_error),
            )
