"""What `nn.MultiheadAttention` computes between its projections.

PyTorch has it in one function with the projections, whose weights get no gradient there. Dimension letters:

    Q  (n, l, d)    projected queries        h  heads
    K  (n, s, d)    projected keys           n  sequences of the batch
    V  (n, s, d)    projected values         l, s  their lengths, of queries and of keys
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class MaskedKeyValues:
    """Keys and values with what some modules add at their end, and the masks that fit these.

    Args:
        k: Shape `(n, s, d)`.
        v: Likewise.
        mask: Added to the scores, shape `(l, s)` or `(n·h, l, s)`; None for none.
        padding: Added to the scores of all queries, shape `(n, s)`; None for none.
    """

    k: Tensor
    v: Tensor
    mask: Tensor | None
    padding: Tensor | None

    def with_one_more(self, k: Tensor, v: Tensor) -> MaskedKeyValues:
        """The same with one more key and value at the end, which no mask hides.

        Args:
            k: Shape `(1, 1, d)`.
            v: Likewise.

        Returns:
            The extended ones.
        """
        rows = len(self.k)
        return MaskedKeyValues(
            torch.cat([self.k, k.expand(rows, -1, -1)], dim=1),
            torch.cat([self.v, v.expand(rows, -1, -1)], dim=1),
            None if self.mask is None else F.pad(self.mask, (0, 1)),
            None if self.padding is None else F.pad(self.padding, (0, 1)),
        )

    def merged_mask(self, heads: int) -> Tensor | None:
        """Both masks in one that can be added to scores of the shape `(n, h, l, s)`.

        Args:
            heads: `h`.

        Returns:
            The mask, or None if there is none.
        """
        mask = self.mask
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (-1, heads))
        if self.padding is None:
            return mask
        padding = self.padding[:, None, None]
        return padding if mask is None else mask + padding


def attend(
    q: Tensor, keys: MaskedKeyValues, heads: int, is_causal: bool, dropout: float, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """`softmax(Q Kᵀ / √(d/h) + mask) V`, head by head.

    Args:
        q: Shape `(n, l, d)`.
        keys: Keys, values and masks.
        heads: `h`.
        is_causal: Whether a query sees the keys up to its own place only; without masks.
        dropout: The probability of a weight to be dropped.
        need_weights: Whether to return the weights as well, which takes memory for them.

    Returns:
        Shape `(n, l, d)`, and the weights, `(n, h, l, s)`, or None.
    """
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, keys.k, keys.v))
    mask = keys.merged_mask(heads)
    if not need_weights:
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        return y.transpose(1, 2).flatten(2), None
    scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return (weights @ v).transpose(1, 2).flatten(2), weights
