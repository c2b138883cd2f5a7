"""The swap-in way of training columns, to be measured against resident columns.

The weight stays pretrained between uses: right before each GEMM, in forward and again in backward, the adapted columns
are written into it, and right after it the pretrained ones are written back. Both copies are kept for backward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwappedColumns:
    """A context in which a weight holds other columns.

    Args:
        weight: Shape `(out, in)`; written without autograd noticing.
        indices: Which columns, shape `(r,)`.
        inside: What they hold inside the context, shape `(out, r)`.
        after: What they hold after it, shape `(out, r)`.
    """

    def __init__(self, weight: Tensor, indices: Tensor, inside: Tensor, after: Tensor) -> None:
        self.weight, self.indices, self.inside, self.after = weight.data, indices, inside, after

    def __enter__(self) -> None:
        self.weight.index_copy_(1, self.indices, self.inside)

    def __exit__(self, *_: Any) -> None:
        self.weight.index_copy_(1, self.indices, self.after)


class _SwapLinear(torch.autograd.Function):
    """`Y = X Wᵀ + b` with the adapted columns in `W` for the length of the product, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., in)
        weight: Tensor,  # (out, in), frozen
        bias: Tensor | None,  # (out,), frozen
        indices: Tensor,  # (r,)
        delta: Tensor,  # (out, r)
        scaling: float,
    ) -> Tensor:
        pretrained = weight.detach().index_select(1, indices)
        adapted = pretrained + (scaling * delta).to(weight.dtype)
        with SwappedColumns(weight, indices, adapted, pretrained):
            y = F.linear(x, weight, bias)
        ctx.save_for_backward(weight, indices, adapted, pretrained, x.index_select(-1, indices))
        ctx.scaling, ctx.delta_dtype = scaling, delta.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, indices, adapted, pretrained, x_slice = ctx.saved_tensors
        grad_x = grad_delta = None
        if ctx.needs_input_grad[0]:
            with SwappedColumns(weight, indices, adapted, pretrained):
                grad_x = grad_output @ weight  # ∇X = ∇Y W
        if ctx.needs_input_grad[4]:
            grad_tokens = grad_output.reshape(-1, grad_output.shape[-1])
            grad_columns = grad_tokens.t() @ x_slice.reshape(-1, x_slice.shape[-1])  # ∇W[:, I] = ∇Yᵀ X[:, I]
            grad_delta = (ctx.scaling * grad_columns).to(ctx.delta_dtype)
        return grad_x, None, None, None, grad_delta, None


class SwapLinear(nn.Module):
    """A linear layer of which `r` input columns are trained by swapping them in and out.

    Args:
        base: The pretrained layer; its own parameters are frozen.
        rank: How many columns, at most `base.in_features`; chosen at random.
        alpha: The update is scaled by `alpha / rank`; 1 × when left out.

    Raises:
        ValueError: If the layer has fewer inputs than `rank`.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        if not 1 <= rank <= base.in_features:
            raise ValueError(
                f"rank {rank} does not fit a linear layer with {base.in_features} input columns; "
                f"give a rank from 1 to {base.in_features}."
            )
        self.base = base.requires_grad_(False)
        self.scaling = 1.0 if alpha is None else alpha / rank
        indices = torch.randperm(base.in_features)[:rank].sort().values
        self.register_buffer("indices", indices.to(base.weight.device))
        self.swap_delta = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x` of shape `(..., in)`; the result has shape `(..., out)`."""
        return _SwapLinear.apply(x, self.base.weight, self.base.bias, self.indices, self.swap_delta, self.scaling)
