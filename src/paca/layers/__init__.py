"""Adapted layers, one file per kind of base layer, and the table of kinds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .base import PacaLayer, sync
from .linear import Conv1DLinear, Linear, TransposedLinear

__all__ = ["LAYER_KINDS", "Conv1DLinear", "LayerKind", "Linear", "PacaLayer", "layer_kind", "sync"]


@dataclass(frozen=True)
class LayerKind:
    """A kind of layer that can be adapted."""

    name: str
    base_class: type[nn.Module]
    layer_class: type[PacaLayer]
    connection: str  # what one connection is, in words


LAYER_KINDS = (
    LayerKind("torch.nn.Linear", nn.Linear, Linear, "an input feature"),
    LayerKind("transformers.pytorch_utils.Conv1D", TransposedLinear, Conv1DLinear, "an input feature"),
)


def layer_kind(module: nn.Module) -> LayerKind | None:
    """The kind of a base layer.

    Args:
        module: The layer.

    Returns:
        Its kind, or None if it cannot be adapted.
    """
    return next((kind for kind in LAYER_KINDS if isinstance(module, kind.base_class)), None)
