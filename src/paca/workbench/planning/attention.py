"""Attention as a GPU's flash kernel keeps it: queries, keys, values, the output and one logarithm per row and head."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLASH = "paca_fused"  # transformers takes any name with "flash" in it for a package of its own


def flash_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """CUDA's own flash operator, whose shapes and saved tensors fake tensors follow on any machine.

    Args:
        module: The attention module, which says whether it is causal.
        query: Shape `(batch, heads, tokens, size)`.
        key: Shape `(batch, key heads, tokens, size)`; the kernel repeats none.
        value: Likewise.
        attention_mask: Not read: what is planned for has no padding.
        scaling: Of the scores.
        dropout: Of the probabilities.
        **kwargs: What transformers passes besides.

    Returns:
        Shape `(batch, tokens, heads, size)`, and None for the probabilities, which are never there.
    """
    causal = bool(getattr(module, "is_causal", True))
    operator = torch.ops.aten._scaled_dot_product_flash_attention.default
    output = operator(query, key, value, dropout, causal, scale=scaling)[0]
    return output.transpose(1, 2).contiguous(), None


def cpu_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers' `sdpa` does for a batch without padding.

    Over fake tensors its own makes a mask, since it cannot look into the batch, and with a mask it repeats the keys.

    Args:
        module: The attention module, which says whether it is causal.
        query: Shape `(batch, heads, tokens, size)`.
        key: Shape `(batch, key heads, tokens, size)`.
        value: Likewise.
        attention_mask: Not read.
        scaling: Of the scores.
        dropout: Of the probabilities.
        **kwargs: What transformers passes besides.

    Returns:
        Shape `(batch, tokens, heads, size)`, and None for the probabilities.
    """
    causal = bool(getattr(module, "is_causal", True))
    grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=causal, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2).contiguous(), None


ATTENTIONS = {"fused": FLASH, "sdpa": "paca_sdpa"}


def register() -> None:
    """Make transformers know these attentions by the names in `ATTENTIONS`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTIONS["fused"], flash_attention)
    AttentionInterface.register(ATTENTIONS["sdpa"], cpu_attention)
