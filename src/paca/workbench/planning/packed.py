"""Puts 4-bit layers (NF4) into a model: on the meta device by their shapes, elsewhere by packing the weights."""

from typing import Any

import torch
from torch import nn

from paca.errors import PacaError

BLOCK = 64  # weights per scale
SCALES = 256  # scales per scale of scales


def pack_linears(model: Any, dtype: torch.dtype) -> None:
    """Replace linear layers, except the output head, by bitsandbytes' 4-bit ones that compute in `dtype`, in place.

    A PacaError if bitsandbytes is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise PacaError("4-bit layers need the package 'bitsandbytes': pip install bitsandbytes") from error
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                parent._modules[name] = _packed_layer(bitsandbytes, child, dtype)


def _packed_layer(bitsandbytes: Any, plain: nn.Linear, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        layer = bitsandbytes.nn.Linear4bit(
            plain.in_features, plain.out_features, plain.bias is not None, dtype, quant_type="nf4"
        )
    layer.compute_type_is_set = True
    layer.bias = plain.bias
    if plain.weight.device.type == "meta":
        with torch.device("meta"):
            layer.weight = _packed(plain.weight)
        return layer
    layer.weight = bitsandbytes.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
    return layer.to(plain.weight.device)  # this packs it


def _packed(weight: torch.Tensor) -> Any:
    from bitsandbytes.functional import QuantState

    scales = -(-weight.numel() // BLOCK)
    nested = QuantState(
        absmax=torch.empty(-(-scales // SCALES)), code=torch.empty(256), blocksize=SCALES, dtype=torch.float32
    )
    state = QuantState(
        absmax=torch.empty(scales, dtype=torch.uint8),
        shape=weight.shape,
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=weight.dtype,
        offset=torch.empty(()),
        state2=nested,
    )
    data = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8)
    packed: Any = nn.Parameter(data, requires_grad=False)
    packed.quant_state = state
    packed.bnb_quantized = True
    return packed
