"""Attention as a GPU's flash kernel keeps it: queries, keys, values, the output and one logarithm per row and head."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLASH = "paca_fused"  # transformers takes any name with "flash" in it for a package of its own


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool, scale: float | None) -> Tensor:
    """CUDA's own operator, whose shapes and saved tensors fake tensors follow on any machine; it repeats no keys."""
    output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention.default(
        query, key, value, dropout, causal, scale=scale
    )[0]
    return output


def _sdpa(query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool, scale: float | None) -> Tensor:
    """What transformers' `sdpa` does for a batch without padding.

    Over fake tensors its own makes a mask, since it cannot look into the batch, and with a mask it repeats the keys.
    """
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _as_transformers_calls_it(kernel: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Make an attention function of a kernel over queries, keys and values of shape `(batch, heads, tokens, size)`."""

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # not read: what is planned for has no padding
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        output = kernel(query, key, value, dropout, bool(getattr(module, "is_causal", True)), scaling)
        return output.transpose(1, 2).contiguous(), None  # the probabilities are never there

    return attention


ATTENTIONS = {"fused": FLASH, "sdpa": "paca_sdpa"}


def register() -> None:
    """Make transformers know these attentions by the names in `ATTENTIONS`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTIONS["fused"], _as_transformers_calls_it(_flash))
    AttentionInterface.register(ATTENTIONS["sdpa"], _as_transformers_calls_it(_sdpa))
