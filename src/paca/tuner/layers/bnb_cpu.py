"""Keeps bitsandbytes' own 4-bit layers trainable and right on every CPU."""

from __future__ import annotations

from typing import Any

from .bnb_weight import packed_as_saved


def apply_cpu_workarounds(layer: Any) -> None:
    """Keep a 4-bit layer of bitsandbytes trainable and right on the CPU.

    On a CPU with bfloat16 instructions, its forward without gradients repacks the weight in place, with its scales
    rounded to bfloat16; from then on no gradient passes through the layer. Here the weight stays as it was packed.
    And where a row of the weight ends within a block of scales, the layer's own forward and backward multiply with
    a wrong matrix on some CPUs (see `bnb_weight.dequantized_4bit`); such a layer gets the class in `bnb_linear`.

    Args:
        layer: Any module; only a 4-bit layer of bitsandbytes is changed.
    """
    if "quant_state" not in vars(layer):
        return
    state = getattr(layer.weight, "quant_state", None)
    if getattr(layer, "support_avx512bf16_for_cpu", False):
        layer.support_avx512bf16_for_cpu = False
        if getattr(state, "packing_format_for_cpu", False):
            layer.weight.data, layer.weight.quant_state = packed_as_saved(layer.weight)
            state = layer.quant_state = layer.weight.quant_state
    if state is not None and layer.weight.device.type == "cpu" and state.shape[-1] % state.blocksize:
        from .bnb_linear import Linear4bit

        if type(layer) in Linear4bit.REPLACED:
            layer.__class__ = Linear4bit
