"""The gradient of updates whose layer computes without them: a divided weight that holds their columns.

Under tensor parallelism the base layer's own forward runs, with the collectives that belong to it, over a frozen
weight. Its output needs nothing added, as the columns are in the weight. What is missing are the gradients of the
updates, which a node behind the output computes from `∇Y` and the selected slices of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import PacaError
from ..columns.sharded import is_sharded
from ..columns.tensor_parallel import TensorParallelColumns, is_row_wise, span
from ..columns.update import ColumnUpdate
from .linear import column_gradient, require_frozen


class DividedGradient(torch.autograd.Function):
    """`Y` as it is; in backward `∇Δ = s · ∇Yᵀ X[..., I]`, divided over ranks as `Δ` is.

    From here on backward goes through the base layer's own graph, which multiplies with the weight: the columns are
    put in here, and stay until `EndOfBackward`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,  # (..., out), or this rank's part of it
        columns: TensorParallelColumns,
        weight: Any,  # (out, in), a DTensor
        loan: Any,
        bracketed: bool,  # whether `EndOfBackward` follows
        updates: tuple[ColumnUpdate, ...],
        slices: tuple[Tensor | None, ...],  # X[..., I] of the connections that this rank holds, (..., n), per update
        *deltas: Tensor,  # (out, r) per update
    ) -> Tensor:
        ctx.save_for_backward(*slices)
        ctx.columns, ctx.weight, ctx.loan, ctx.bracketed, ctx.updates = columns, weight, loan, bracketed, updates
        return y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if ctx.bracketed:
            ctx.loan.__enter__()
        else:
            ctx.loan.finish()
        grad_tokens = grad_output.reshape(-1, grad_output.shape[-1])
        start, stop = span(ctx.weight, 0)
        if grad_tokens.shape[1] != stop - start:  # the layer has gathered its output
            grad_tokens = grad_tokens[:, start:stop]
        grads = [
            None
            if x is None
            else _divided(column_gradient(grad_tokens, x.reshape(-1, x.shape[-1])), update, ctx.columns, ctx.weight)
            for x, update in zip(ctx.saved_tensors, ctx.updates, strict=True)
        ]
        return grad_output, None, None, None, None, None, None, *grads


class EndOfBackward(torch.autograd.Function):
    """`X` as it is; in backward, the layer's graph has been gone through, and the columns are let go of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loan: Any) -> Tensor:
        ctx.loan = loan
        return x.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        ctx.loan.__exit__()
        ctx.loan.finish()
        return grad_output, None


def _divided(grad: Tensor, update: ColumnUpdate, columns: TensorParallelColumns, weight: Any) -> Tensor:
    """This rank's gradient of some rows, or of some connections, as a part of the whole update's."""
    from torch.distributed.tensor import DTensor, Partial

    delta: Any = update.delta
    grad = grad.to(delta.dtype)
    grad = grad if update.scaling == 1 else grad * update.scaling
    options = {"run_check": False, "shape": delta.shape, "stride": delta.stride()}
    if not is_row_wise(weight):
        return DTensor.from_local(grad.contiguous(), delta.device_mesh, delta.placements, **options)
    whole = grad.new_zeros(delta.shape).index_copy_(1, columns.place(weight, update.indices)[0], grad)
    return DTensor.from_local(whole, delta.device_mesh, [Partial()], **options).redistribute(
        placements=delta.placements
    )


def with_divided_gradient(
    x: Tensor,
    forward: Callable[[Tensor], Tensor],
    columns: TensorParallelColumns,
    weight: Any,
    loan: Any,
    updates: tuple[ColumnUpdate, ...],
) -> Tensor:
    """A divided layer's output, differentiable in the updates whose columns its weight holds.

    Args:
        x: The layer's input, shape `(..., in)`, or this rank's part of it.
        forward: The base layer's forward.
        columns: Knows which part of the weight this rank has.
        weight: The weight, a `DTensor` of shape `(out, in)`.
        loan: Has the columns in it, in forward and again in backward.
        updates: The updates.

    Returns:
        Shape `(..., out)`, or this rank's part of it.

    Raises:
        PacaError: If input and output are not of the same tokens, or are divided tensors; or if the weight requires a
            gradient.
    """
    require_frozen(weight)
    differentiated = torch.is_grad_enabled() and x.requires_grad
    inner = EndOfBackward.apply(x, loan) if differentiated else x
    with loan:
        y = forward(inner)
    if is_sharded(x) or is_sharded(y) or x.shape[:-1] != y.shape[:-1]:
        raise PacaError(
            f"A layer that tensor parallelism has divided got {_described(x)} and returned {_described(y)}: these are "
            "not plain tensors over the same tokens, as they are not in sequence parallelism. Plan the layer as "
            "colwise or rowwise, or leave it out with exclude_modules."
        )
    slices = tuple(
        _slice(x, update, columns, weight).to(y.dtype) if update.delta.requires_grad else None for update in updates
    )
    deltas = (update.delta for update in updates)
    output: Tensor = DividedGradient.apply(y, columns, weight, loan, differentiated, updates, slices, *deltas)
    return output


def _slice(x: Tensor, update: ColumnUpdate, columns: TensorParallelColumns, weight: Any) -> Tensor:
    """`X[..., I]` of the connections that this rank holds."""
    start, stop = span(weight, 1)
    if x.shape[-1] != stop - start:  # the layer divides its input itself
        x = x[..., start:stop]
    elif update.gather is not None and not is_row_wise(weight):
        return update.gather(x, update.indices, x.dtype)
    return x.detach().index_select(-1, columns.place(weight, update.indices)[1])


def _described(tensor: Tensor) -> str:
    return f"a {type(tensor).__name__} of shape {tuple(tensor.shape)}"
