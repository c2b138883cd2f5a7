"""Adapted layers, one file per kind of base layer, and the table of kinds."""

from .attention import Attention
from .base import PacaLayer
from .conv import Convolution
from .embedding import Embedding
from .experts import Experts
from .kinds import LAYER_KINDS, LayerKind, layer_kind
from .linear import Conv1DLinear, Linear
from .quantized import QuantizedLinear

__all__ = [
    "LAYER_KINDS",
    "Attention",
    "Conv1DLinear",
    "Convolution",
    "Embedding",
    "Experts",
    "LayerKind",
    "Linear",
    "PacaLayer",
    "QuantizedLinear",
    "layer_kind",
]
