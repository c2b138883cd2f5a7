"""The gradient of updates whose layer computes without them: a divided weight that holds their columns.

Under tensor parallelism the base layer's own forward runs, with the collectives that belong to it, over a frozen
weight. Its output needs nothing added, as the columns are in the weight. What is missing are the gradients of the
updates, which a node behind the output computes from `∇Y` and the selected slices of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import PacaError
from ..columns.resident import Shown, Term
from ..columns.sharded import is_sharded
from ..columns.tensor_parallel import TensorParallelColumns
from .linear import column_gradient, require_frozen


class DividedGradient(torch.autograd.Function):
    """`Y` as it is; in backward `∇Δ = s · ∇Yᵀ X[..., I]`, divided over ranks as `Δ` is."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,  # (..., out), or this rank's part of it
        columns: TensorParallelColumns,
        shown: Shown | None,
        terms: tuple[Term, ...],
        slices: tuple[Tensor | None, ...],  # X[..., I] of the connections that this rank holds, (..., n), per term
        *deltas: Tensor,  # (out, r) per term
    ) -> Tensor:
        ctx.save_for_backward(*slices)
        ctx.columns, ctx.shown, ctx.terms = columns, shown, terms
        return y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        columns: TensorParallelColumns = ctx.columns
        columns.show_again(ctx.shown)
        grad_tokens = grad_output.reshape(-1, grad_output.shape[-1])
        start, stop = columns.span(0)
        if grad_tokens.shape[1] != stop - start:  # the layer has gathered its output
            grad_tokens = grad_tokens[:, start:stop]
        grads = [
            None if x is None else _divided(column_gradient(grad_tokens, x.reshape(-1, x.shape[-1])), term, columns)
            for x, term in zip(ctx.saved_tensors, ctx.terms, strict=True)
        ]
        return grad_output, None, None, None, None, *grads


def _divided(grad: Tensor, term: Term, columns: TensorParallelColumns) -> Tensor:
    """This rank's gradient of some rows, or of some connections, as a part of the whole update's."""
    from torch.distributed.tensor import DTensor, Partial

    delta: Any = term.delta
    grad = grad.to(delta.dtype)
    grad = grad if term.scaling == 1 else grad * term.scaling
    options = {"run_check": False, "shape": delta.shape, "stride": delta.stride()}
    if not columns.row_wise:
        return DTensor.from_local(grad.contiguous(), delta.device_mesh, delta.placements, **options)
    whole = grad.new_zeros(delta.shape).index_copy_(1, columns.place(term.indices)[0], grad)
    return DTensor.from_local(whole, delta.device_mesh, [Partial()], **options).redistribute(
        placements=delta.placements
    )


def with_divided_gradient(
    x: Tensor, y: Tensor, terms: tuple[Term, ...], columns: TensorParallelColumns, shown: Shown | None
) -> Tensor:
    """A divided layer's output, differentiable in the updates whose columns its weight holds.

    Args:
        x: The layer's input, shape `(..., in)`, or this rank's part of it.
        y: Its output, shape `(..., out)`, or this rank's part of it.
        terms: The adapters.
        columns: Keeper of the weight's columns; asked in backward to show what forward used.
        shown: What the weight showed.

    Returns:
        `y`.

    Raises:
        PacaError: If input and output are not of the same tokens, or are divided tensors; or if the weight requires a
            gradient.
    """
    require_frozen(columns.weight)
    if is_sharded(x) or is_sharded(y) or x.shape[:-1] != y.shape[:-1]:
        raise PacaError(
            f"A layer that tensor parallelism has divided got {_described(x)} and returned {_described(y)}: these are "
            "not plain tensors over the same tokens, as they are not in sequence parallelism. Plan the layer as "
            "colwise or rowwise, or leave it out with exclude_modules."
        )
    slices = tuple(_slice(x, term, columns).to(y.dtype) if term.delta.requires_grad else None for term in terms)
    output: Tensor = DividedGradient.apply(y, columns, shown, terms, slices, *(term.delta for term in terms))
    return output


def _slice(x: Tensor, term: Term, columns: TensorParallelColumns) -> Tensor:
    """`X[..., I]` of the connections that this rank holds."""
    start, stop = columns.span(1)
    if x.shape[-1] != stop - start:  # the layer divides its input itself
        x = x[..., start:stop]
    elif term.gather is not None and not columns.row_wise:
        return term.gather(x, term.indices, x.dtype)
    return x.detach().index_select(-1, columns.place(term.indices)[1])


def _described(tensor: Tensor) -> str:
    return f"a {type(tensor).__name__} of shape {tuple(tensor.shape)}"
