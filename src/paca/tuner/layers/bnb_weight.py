"""What a 4-bit layer of bitsandbytes computes with: the values of its weight, and the dtype."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def dequantized_4bit(packed: Tensor, state: Any) -> Tensor:
    """The values that a 4-bit weight of bitsandbytes stands for.

    Blocks of values share a scale, and run on from one row of the matrix into the next. bitsandbytes' kernel for CPUs
    with AVX512 (0.49 to 0.50.2 at least) begins a block anew with every row, and so takes wrong scales where the rows
    are no multiple of the block. It gets rows of one block each, or all values as one row.

    Args:
        packed: The bytes.
        state: Their `QuantState`.

    Returns:
        A tensor of the state's shape and dtype, in memory of its own.
    """
    from bitsandbytes.functional import dequantize_4bit

    if packed.device.type == "cpu" and state.shape[-1] % state.blocksize:
        rows, rest = divmod(state.shape.numel(), state.blocksize)
        flat = copy.copy(state)
        flat.shape = torch.Size((1, state.shape.numel()) if rest else (rows, state.blocksize))
        return dequantize_4bit(packed, flat).reshape(state.shape)
    return dequantize_4bit(packed, state)


def compute_dtype(layer: Any, x: Tensor) -> torch.dtype:
    """The dtype that a quantized layer multiplies in.

    Args:
        layer: The layer; one of bitsandbytes that is open about it settles it at its first input.
        x: The input.

    Returns:
        The layer's own compute dtype, else the input's.
    """
    if getattr(layer, "compute_type_is_set", True) is False:
        layer.set_compute_type(x)
        layer.compute_type_is_set = True
    return getattr(layer, "compute_dtype", None) or x.dtype


def packed_as_saved(weight: Any) -> tuple[Tensor, Any]:
    """Bytes and state, in bitsandbytes' ordinary layout, of a weight that it has repacked for a CPU.

    Args:
        weight: A `Params4bit` whose state says `packing_format_for_cpu`; it stays as it is.

    Returns:
        The bytes, and the `QuantState`.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    data, state = _convert_weight_packed_for_cpu_inverse(weight.data, copy.copy(weight.quant_state))
    # It leaves the scales transposed, or quantizes them a second time. They are there, in bfloat16: take them.
    state.absmax = weight.quant_state.absmax.t().reshape(-1).float()
    state.nested, state.offset, state.state2 = False, None, None
    return data, state
