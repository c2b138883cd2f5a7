"""The table of the kinds of layers that can be adapted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ...method.columns.tensor_parallel import is_tensor_parallel
from .attention import Attention
from .base import PacaLayer
from .conv import CONVOLUTIONS, Convolution
from .embedding import Embedding
from .linear import Conv1DLinear, Linear, TransposedLinear
from .norm import Norm, is_norm
from .quantized import QuantizedLinear, comes_quantized
from .tensor_parallel import TensorParallelLinear


@dataclass(frozen=True)
class LayerKind:
    """A kind of layer that can be adapted."""

    name: str
    matches: Callable[[nn.Module], bool]
    layer_class: type[PacaLayer]
    connection: str  # what one connection is, in words


def _is_quantized_linear(module: nn.Module) -> bool:
    return comes_quantized(module) and hasattr(module, "in_features") and hasattr(module, "out_features")


def _is_tensor_parallel(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and is_tensor_parallel(module._parameters.get("weight"))


# The first that matches: most quantized layers are an nn.Linear as well.
LAYER_KINDS = (
    LayerKind("quantized linear layers", _is_quantized_linear, QuantizedLinear, "an input feature"),
    LayerKind(
        "torch.nn.Linear divided by tensor parallelism", _is_tensor_parallel, TensorParallelLinear, "an input feature"
    ),
    LayerKind("torch.nn.Linear", lambda module: isinstance(module, nn.Linear), Linear, "an input feature"),
    LayerKind(
        "transformers.pytorch_utils.Conv1D",
        lambda module: isinstance(module, TransposedLinear),
        Conv1DLinear,
        "an input feature",
    ),
    LayerKind(
        "torch.nn.Conv1d, Conv2d and Conv3d",
        lambda module: isinstance(module, CONVOLUTIONS),
        Convolution,
        "an input channel",
    ),
    LayerKind(
        "torch.nn.MultiheadAttention",
        lambda module: isinstance(module, nn.MultiheadAttention),
        Attention,
        "an input feature",
    ),
    LayerKind("norms", is_norm, Norm, "the whole weight"),
    LayerKind("torch.nn.Embedding", lambda module: isinstance(module, nn.Embedding), Embedding, "a token"),
)


def layer_kind(module: nn.Module) -> LayerKind | None:
    """The kind of a base layer.

    Args:
        module: The layer.

    Returns:
        Its kind, or None if it cannot be adapted.
    """
    return next((kind for kind in LAYER_KINDS if kind.matches(module)), None)
