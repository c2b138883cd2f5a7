"""Attention as a GPU's kernels keep it: queries, keys, values, the output and one logarithm per row and head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLASH = "paca_fused"  # transformers takes any name with "flash" in it for a package of its own
LARGEST_FLASH_HEAD = 256


def _fused(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    """CUDA's own operators, whose shapes and saved tensors fake tensors follow on any machine.

    Which one follows `scaled_dot_product_attention`: flash attention repeats no keys; heads of values that differ from
    those of queries (multi-head latent attention), heads that are too large for it and biases take the
    memory-efficient kernel, for which keys are repeated.
    """
    if bias is None and query.shape[-1] == value.shape[-1] <= LARGEST_FLASH_HEAD:
        flash = torch.ops.aten._scaled_dot_product_flash_attention.default
        output: Tensor = flash(query, key, value, dropout, causal, scale=scale)[0]
        return output
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if bias is not None:
        bias = bias.to(query.dtype).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention.default
    repeated: Tensor = efficient(query, key, value, bias, True, dropout, causal, scale=scale)[0]
    return repeated


def _as_transformers_calls_it(kernel: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Make an attention function of a kernel over queries, keys and values of shape `(batch, heads, tokens, size)`."""
    from transformers.integrations.sdpa_attention import create_position_bias_mask

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # not read: what is planned for has no padding
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        position_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if position_bias is not None:  # as in T5: added to the scores, and the causal mask with it
            position_bias = create_position_bias_mask(position_bias, None, causal, query, key)
            causal = False
        output = kernel(query, key, value, position_bias, dropout, causal, scaling)
        return output.transpose(1, 2).contiguous(), None  # the probabilities are never there

    return attention


def _sdpa(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """What transformers' `sdpa` does for a batch without padding.

    Over fake tensors a mask would be made for it, since no one can look into the batch, and with a mask it repeats the
    keys.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    kwargs.pop("softcap", None)  # which it refuses, since it cannot compute it
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


# What transformers chooses itself (None) is for models that take no other: they make masks, and may keep scores.
ATTENTIONS = {"fused": FLASH, "sdpa": "paca_sdpa", "own": None}


def register() -> None:
    """Make transformers know these attentions by the names in `ATTENTIONS`."""
    from transformers import AttentionInterface

    AttentionInterface.register(FLASH, _as_transformers_calls_it(_fused))
    AttentionInterface.register("paca_sdpa", _sdpa)
