"""PaCA on `nn.MultiheadAttention`: its packed query, key and value weight `(3d, d)`, and its output projection.

A connection is an input feature. PyTorch's module never calls its output projection and has the others in no layer of
their own; its forward reads all weights in one fused function. While something is trained, the projections are
computed here, one product each, and what lies between them in `multihead.py`; so they are in compiled code. Without
gradients the module itself runs, over weights that hold their columns, fused paths included.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import PacaError
from ...method.functional.attention import MaskedKeyValues, attend
from ...method.functional.linear import require_frozen
from .base import PacaLayer
from .hooks import call_in_place_of, call_over
from .linear import Linear, linear_over


class Attention(PacaLayer):
    """`nn.MultiheadAttention` with adapted columns in the weights of all its projections.

    This layer keeps the columns of the packed weight; those of the output projection are kept by a `Linear` that
    stands in its place inside the base layer.

    Args:
        base_layer: The attention module.
    """

    connection_dim = 1
    converts_to_lora = False
    weight_name = "in_proj_weight"
    base_forward = nn.MultiheadAttention.forward

    def __init__(self, base_layer: Any) -> None:
        super().__init__(base_layer)
        if not isinstance(base_layer.out_proj, PacaLayer):
            base_layer.out_proj = Linear(base_layer.out_proj)

    @classmethod
    def problem(cls, base: Any) -> str | None:
        """Why an attention module cannot be adapted as it is: beside `PacaLayer.problem`, other layouts."""
        if problem := cls._forward_problem(base, "attend as nn.MultiheadAttention does", "columns"):
            return problem
        if not base._qkv_same_embed_dim:
            return (
                f"its keys or values have other widths (kdim={base.kdim}, vdim={base.vdim}) than its queries "
                f"({base.embed_dim}), so its weights are not packed. Leave it out with exclude_modules."
            )
        out = base.out_proj
        return super().problem(base) or Linear.problem(out.base_layer if isinstance(out, PacaLayer) else out)

    def parts(self, name: str) -> list[tuple[str, PacaLayer]]:
        """This layer and the one of its output projection."""
        return [(name, self), (f"{name}.out_proj", self.base_layer.out_proj)]

    def _features(self) -> tuple[int, int]:
        out, connections = self.base_weight.shape
        return connections, out

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The attention module's own forward, over the columns of the active adapters.

        Args:
            query: Shape `(n, l, d)`, or `(l, n, d)` without `batch_first`, or `(l, d)`.
            key: Shape `(n, s, d)`, or `(s, n, d)`, or `(s, d)`.
            value: As `key`.
            *args: As `nn.MultiheadAttention.forward` takes them.
            **kwargs: Likewise.

        Returns:
            The output, of the shape of `query`, and the weights of the heads or None.

        Raises:
            PacaError: If rows are to get different adapters, or the columns can't be in the weights.
        """
        if kwargs.pop("adapter_names", None) is not None:
            raise PacaError(
                "`adapter_names` cannot mix adapters in a batch here: an adapter is on torch.nn.MultiheadAttention. "
                "Run one batch per adapter, with set_adapter before each."
            )
        base = self.base_layer
        if "forward" in base.__dict__:
            raise PacaError(
                "The forward of an adapted torch.nn.MultiheadAttention was replaced (by offloading, say), so its "
                "columns cannot be trained. Keep it on one device, or leave it out of target_modules."
            )
        if torch.compiler.is_compiling() or self._projections_are_differentiated(query, key, value):
            return call_in_place_of(base, self._attend, query, key, value, *args, **kwargs)
        if self.is_flattened():
            return call_over(base, self.weight_name, self.weight, query, key, value, *args, **kwargs)
        parts = (self, base.out_proj)
        if all(part.holds_columns() for part in parts):
            with ExitStack() as stack:
                if all(stack.enter_context(part.lend_own()) is part.base_weight for part in parts):
                    return base(query, key, value, *args, **kwargs)
        return call_in_place_of(base, self._attend, query, key, value, *args, **kwargs)

    def _projections_are_differentiated(self, *inputs: Tensor) -> bool:
        if not torch.is_grad_enabled() or inputs[0].is_nested:
            return False
        base = self.base_layer
        out = base.out_proj
        updates = (*self.updates(), *out.updates())
        tensors = (*inputs, base.in_proj_bias, base.bias_k, base.bias_v, out.base_layer.bias)
        return any(tensor is not None and tensor.requires_grad for tensor in tensors) or any(
            update.delta.requires_grad for update in updates
        )

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What the base layer's forward computes, differentiable in the columns."""
        base = self.base_layer
        is_batched: Callable[..., bool] = F._mha_shape_check  # type: ignore[attr-defined]
        batched = is_batched(query, key, value, key_padding_mask, attn_mask, base.num_heads)
        mask, padding = _as_numbers(attn_mask, key_padding_mask, query.dtype)
        if is_causal and mask is None:
            raise RuntimeError("is_causal is a hint on attn_mask, which is missing; pass the mask as well.")
        causal = is_causal and padding is None and not need_weights
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = (tensor[None] for tensor in (q, k, v))
            padding = None if padding is None else padding[None]
        elif not base.batch_first:
            q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
        keys = MaskedKeyValues(k, v, None if causal else mask, padding)
        if base.bias_k is not None:
            keys = keys.with_one_more(base.bias_k, base.bias_v)
        if base.add_zero_attn:
            zeros = k.new_zeros(1, 1, k.shape[-1])
            keys = keys.with_one_more(zeros, zeros)
        dropout = base.dropout if base.training else 0.0
        y, weights = attend(q, keys, base.num_heads, causal, dropout, need_weights)
        if batched and not base.batch_first:
            y = y.transpose(0, 1)
        y = base.out_proj(y if batched else y[0])
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        return y, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values; in one product where they are made from one input."""
        inputs: tuple[tuple[Tensor, int], ...]
        if key is not value:
            inputs = ((query, 1), (key, 1), (value, 1))
        elif query is not key:
            inputs = ((query, 1), (key, 2))
        else:
            inputs = ((query, 3),)
        loan, width = self._operand(), self.base_layer.embed_dim
        found: list[Tensor] = []
        for x, count in inputs:
            start = len(found) * width
            y = self._project(x, loan, slice(start, start + count * width))
            found += y.split(width, dim=-1)
        return tuple(found)

    def _operand(self) -> Any:
        """What the products get for the weight; None if columns can't be in it."""
        if not self.holds_columns():
            return None
        return self.base_weight if torch.compiler.is_compiling() else self.lend_own()

    def _project(self, x: Tensor, loan: Any, rows: slice) -> Tensor:
        """The product with some rows of the weight, differentiable in their columns."""
        bias = self.base_layer.in_proj_bias
        bias = None if bias is None else bias[rows]
        merged = self.merged_adapters and torch.compiler.is_compiling()  # the weight is taken as it is
        updates = tuple(update._replace(delta=update.delta[rows]) for update in (() if merged else self.updates()))
        if loan is None:
            y = F.linear(x, self.base_weight[rows], bias)
            for update in () if self.merged_adapters else updates:
                y = y + self._additive(x, update).to(y.dtype)
            return y
        require_frozen(self.base_weight)
        return linear_over(
            x, bias, loan[rows] if isinstance(loan, Tensor) else loan.viewed(lambda weight: weight[rows]), updates
        )

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The attention module, with the adapters of all its weights merged or taken out.

        Args:
            merge: Whether to merge them.
            safe_merge: Check first that all merged values are finite.
            adapter_names: The adapters; None merges the active ones.

        Returns:
            The module.
        """
        base: Any = self.base_layer
        for part in (self, base.out_proj) if merge else ():
            part.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        base.out_proj = base.out_proj.base_layer
        return base


def _forwarded(name: str) -> Any:
    """A property that is the base layer's: modules around an attention read these to choose a fused path."""

    def read(layer: Attention) -> Any:
        return getattr(layer.base_layer, name)

    return property(read)


for _name in (
    *("embed_dim", "kdim", "vdim", "_qkv_same_embed_dim", "num_heads", "head_dim", "dropout", "batch_first"),
    *("in_proj_bias", "out_proj", "bias_k", "bias_v", "add_zero_attn", "merge_masks"),
):
    setattr(Attention, _name, _forwarded(_name))
Attention.in_proj_weight = PacaLayer.weight  # type: ignore[attr-defined]


def _as_numbers(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Both masks as numbers to add to scores, checked as PyTorch checks them."""
    canonical: Callable[..., Tensor | None] = F._canonical_mask
    padding = canonical(key_padding_mask, "key_padding_mask", F._none_or_dtype(attn_mask), "attn_mask", dtype)
    return canonical(attn_mask, "attn_mask", None, "", dtype, check_other=False), padding
