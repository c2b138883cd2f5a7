"""bitsandbytes' 4-bit weights stay as they were packed, whatever runs over them."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor


def keep_packing(layer: Any) -> None:
    """Have bitsandbytes leave a weight's bytes alone.

    On a CPU with bfloat16 instructions, its forward without gradients repacks the weight in place, with its scales
    rounded to bfloat16; from then on no gradient passes through the layer. Here the weight stays as it was packed.

    Args:
        layer: Any module; only a 4-bit layer of bitsandbytes is changed.
    """
    if not getattr(layer, "support_avx512bf16_for_cpu", False):
        return
    layer.support_avx512bf16_for_cpu = False
    if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
        layer.weight.data, layer.weight.quant_state = packed_as_saved(layer.weight)
        layer.quant_state = layer.weight.quant_state


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
