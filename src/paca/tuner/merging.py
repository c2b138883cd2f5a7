"""Merging a model's adapters into its base weights, in all layers or in none, and taking the layers out again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch

from .layers.base import PacaLayer
from .layers.find import PEFT_PREFIX
from .layers.quantized import QuantizedLinear
from .layers.unquantized import unquantized_linear

logger = logging.getLogger(__name__)


@contextmanager
def all_or_none(layers: Mapping[str, PacaLayer], adapter_names: list[str] | None, safe_merge: bool) -> Iterator[None]:
    """Check all layers before any is merged in a `with` block; log after it what quantizing them again has cost."""
    for layer in layers.values():
        layer.check_merge(adapter_names, safe_merge)
    yield
    for name, layer in layers.items():
        if isinstance(layer, QuantizedLinear) and layer.merge_error is not None:
            logger.info(
                "merged into %s (%s): relative error of the weight %.2e",
                *(name.removeprefix(PEFT_PREFIX), layer.backend.backend_name, layer.merge_error),
            )


def merge_dequantized(layers: Collection[PacaLayer], dtype: torch.dtype, adapter_names: list[str] | None) -> None:
    """Merge adapters, those of quantized layers into dequantized weights, which nothing quantizes again."""
    for layer in layers:
        layer.check_finite(adapter_names, dtype)
    for layer in layers:
        if isinstance(layer, QuantizedLinear):
            layer.base_layer = unquantized_linear(layer.base_layer, layer.adapted_matrix(dtype, adapter_names))
        else:
            layer.merge(adapter_names=adapter_names)
