"""Makes an ordinary model of a quantized one: plain linear layers, and no mark left of the quantization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .quantized import comes_quantized, dequantized_matrix

# What transformers leaves on a quantized model, beside its quantizer and its configuration.
_MARKS = (
    "hf_quantizer",
    "is_4bit_serializable",
    "is_8bit_serializable",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
    "is_quantized",
    "quantization_method",
)


def unquantized_linear(base: Any, matrix: Tensor) -> nn.Linear:
    """A plain linear layer in place of a quantized one.

    Args:
        base: The quantized layer.
        matrix: The weight that the result gets, `(out, in)`; not copied.

    Returns:
        A frozen layer with that weight and the base layer's bias, in the dtype of `matrix`.
    """
    out_features, in_features = matrix.shape
    bias = getattr(base, "bias", None)
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta", dtype=matrix.dtype)
    linear.weight = nn.Parameter(matrix, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(matrix.device, matrix.dtype), requires_grad=bias.requires_grad)
    return linear.train(base.training)


@torch.no_grad()
def unquantize(model: Any, dtype: torch.dtype) -> Any:
    """Dequantize the linear layers that are still packed, and forget that the model was quantized.

    Args:
        model: A model without adapters; changed in place, layer by layer.
        dtype: Of all its weights afterwards.

    Returns:
        The model, which saves and loads like any other.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if comes_quantized(child) and hasattr(child, "in_features"):
                setattr(parent, name, unquantized_linear(child, dequantized_matrix(child).to(dtype)))
    for mark in _MARKS:
        if mark in model.__dict__:
            delattr(model, mark)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = model.to(dtype)
    if hasattr(config, "dtype"):
        config.dtype = dtype
    return model
