"""The mathematics of partially trained experts, whose weights are fused into one 3-D parameter.

Every row of the input goes through the weight of one expert. Letters as in `linear.py`, and besides:

    X  (rows, in)   a token once for every expert that it is sent to
    W  (experts, out, in), its columns `I` of all experts adapted: `W[:, :, I] = W₀[:, :, I] + s·Δ`
    Δ  (experts, out, r)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear import column_gradient, no_view


class Product(Protocol):
    """How the rows of an input find their experts, and the kernel that multiplies them."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """`yₛ = W[e(s)] xₛ` for every row: `(rows, a)` and `(experts, b, a)` give `(rows, b)`."""

    def rows_of_experts(self) -> Iterable[tuple[int, Any]]:
        """Every expert that has rows, with the index of these."""


class Grouped:
    """Rows sorted by expert; those of expert `e` end before `offsets[e]`.

    Args:
        kernel: `grouped_mm` or a function that does the same: `kernel(x, weight, offs=offsets)`, where the weight is
            `(experts, in, out)`.
        offsets: Shape `(experts,)`.
    """

    def __init__(self, kernel: Any, offsets: Tensor) -> None:
        self.kernel = kernel
        self.offsets = offsets

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """One grouped GEMM."""
        return self.kernel(x, weight.transpose(1, 2), offs=self.offsets)

    def rows_of_experts(self) -> Iterable[tuple[int, slice]]:
        """Runs of rows."""
        start = 0
        for expert, end in enumerate(self.offsets.tolist()):
            if end > start:
                yield expert, slice(start, end)
            start = end


class Batched:
    """Rows in any order, each with its expert's number; a batch of matrix-vector products.

    Args:
        expert_ids: Shape `(rows,)`.
    """

    def __init__(self, expert_ids: Tensor) -> None:
        self.expert_ids = expert_ids

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """One batched GEMM over the gathered weights, which are not kept."""
        return no_view(torch.bmm(weight[self.expert_ids], x.unsqueeze(-1)).squeeze(-1))

    def rows_of_experts(self) -> Iterable[tuple[int, Tensor]]:
        """Row numbers, found by sorting."""
        order = self.expert_ids.argsort(stable=True)
        experts, counts = self.expert_ids.unique(return_counts=True)
        yield from zip(experts.tolist(), order.split(counts.tolist()), strict=True)


class PartialExperts(torch.autograd.Function):
    """`yₛ = W[e(s)] xₛ`, with gradients for `X` and the columns of each adapter, and for nothing else.

    What is kept for backward is `X[:, I]`, and the loan. The frozen model's own batched GEMM keeps the
    weights that it has gathered, one per row; here they are gathered again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (rows, in)
        product: Product,
        loan: Any,  # of W as (experts, out, in)
        indices: tuple[Tensor, ...],  # one (r,) per adapter
        scalings: tuple[float, ...],
        *deltas: Tensor,  # one (experts, out, r) per adapter
    ) -> Tensor:
        with loan as weight:
            y = product.multiply(x, weight)
        needed = ctx.needs_input_grad[5:]
        slices = [
            x.index_select(-1, index).to(y.dtype) if n else None for index, n in zip(indices, needed, strict=True)
        ]
        ctx.save_for_backward(*slices)
        ctx.product, ctx.loan, ctx.scalings = product, loan, scalings
        ctx.x_dtype, ctx.deltas = x.dtype, [(delta.shape, delta.dtype) for delta in deltas]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        slices = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            with ctx.loan as weight:
                matrices = weight.transpose(1, 2).to(grad_output.dtype)
                grad_x = ctx.product.multiply(grad_output, matrices).to(ctx.x_dtype)  # ∇xₛ = W[e(s)]ᵀ ∇yₛ
        ctx.loan.finish()
        rows = list(ctx.product.rows_of_experts()) if any(x_slice is not None for x_slice in slices) else []
        grad_deltas: list[Tensor | None] = []
        for x_slice, scaling, (shape, dtype) in zip(slices, ctx.scalings, ctx.deltas, strict=True):
            if x_slice is None:
                grad_deltas.append(None)
                continue
            grad = grad_output.new_zeros(shape, dtype=dtype)
            for expert, chosen in rows:
                grad[expert] = column_gradient(grad_output[chosen], x_slice[chosen])  # ∇Δ[e] = s · ∇Y[e]ᵀ X[e, I]
            grad_deltas.append(grad.mul_(scaling))
        return grad_x, None, None, None, None, *grad_deltas
