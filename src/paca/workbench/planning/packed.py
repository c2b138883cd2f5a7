"""Puts 4-bit layers (NF4) into a model: on the meta device by their shapes, elsewhere by packing the weights."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from paca.errors import PacaError

BLOCK = 64  # weights per scale
SCALES = 256  # scales per scale of scales


def pack_linears(model: Any, dtype: torch.dtype, nested: bool = True, skipped: Collection[str] = ()) -> None:
    """Replace linear layers, except the output head, by bitsandbytes' 4-bit ones that compute in `dtype`, in place.

    `nested` quantizes their scales too; layers in modules named in `skipped` stay plain. A PacaError if bitsandbytes
    is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise PacaError("4-bit layers need the package 'bitsandbytes': pip install bitsandbytes") from error
    head = model.get_output_embeddings()
    for place, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            full = f"{place}.{name}"
            plain = child is head or any(f".{skip}." in f".{full}." for skip in skipped)
            if type(child) is nn.Linear and not plain:
                parent._modules[name] = _packed_layer(bitsandbytes, child, dtype, nested)


def _packed_layer(bitsandbytes: Any, plain: nn.Linear, dtype: torch.dtype, nested: bool) -> nn.Module:
    with torch.device("meta"):
        layer = bitsandbytes.nn.Linear4bit(
            plain.in_features, plain.out_features, plain.bias is not None, dtype, nested, quant_type="nf4"
        )
    layer.compute_type_is_set = True
    layer.bias = plain.bias
    if plain.weight.device.type == "meta":
        with torch.device("meta"):
            layer.weight = _packed(plain.weight, nested)
        return layer
    layer.weight = bitsandbytes.nn.Params4bit(
        plain.weight.data, requires_grad=False, compress_statistics=nested, quant_type="nf4"
    )
    return layer.to(plain.weight.device)  # this packs it


def _packed(weight: torch.Tensor, nested: bool) -> Any:
    from bitsandbytes.functional import QuantState

    scales = -(-weight.numel() // BLOCK)
    of_scales = QuantState(
        absmax=torch.empty(-(-scales // SCALES)), code=torch.empty(256), blocksize=SCALES, dtype=torch.float32
    )
    state = QuantState(
        absmax=torch.empty(scales, dtype=torch.uint8 if nested else torch.float32),
        shape=weight.shape,
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=weight.dtype,
        offset=torch.empty(()) if nested else None,
        state2=of_scales if nested else None,
    )
    data = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8)
    packed: Any = nn.Parameter(data, requires_grad=False)
    packed.quant_state = state
    packed.bnb_quantized = True
    return packed


def scales(model: nn.Module) -> list[torch.Tensor]:
    """What 4-bit weights are scaled by: neither parameters nor buffers, and on the GPU as well."""
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    states += [getattr(state, "state2", None) for state in states]
    found = (getattr(state, name, None) for state in states for name in ("absmax", "code", "offset"))
    return [tensor for tensor in found if tensor is not None]
