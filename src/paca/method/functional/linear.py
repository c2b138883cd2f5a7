"""The mathematics of a partially trained linear layer, as one autograd function.

PaCA (https://arxiv.org/abs/2503.01905) trains `r` input columns of a weight `W` in place. Dimension letters, here
and in the layers:

    X  (..., in)    input                    W  (out, in)  weight; its columns `I` hold the adapted values
    Y  (..., out)   output                   Δ  (out, r)   what is trained: `W[:, I] = W₀[:, I] + s·Δ`
    I  (r,)         the partial connections  s             scaling, `alpha / r`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import PacaError
from ..columns.lease import plainly
from ..columns.update import ColumnUpdate
from .compiled import linear_input_gradient_op, linear_op


def column_gradient(grad_output: Tensor, x: Tensor) -> Tensor:
    """The gradient of the selected columns, `∇W[:, I] = ∇Yᵀ X[:, I]` (paper, eq. 9).

    Args:
        grad_output: `∇Y`, shape `(tokens, out)`.
        x: `X[:, I]`, shape `(tokens, r)`.

    Returns:
        Shape `(out, r)`, in the dtype of `grad_output`.
    """
    # Both orders are the same product. CPU GEMM kernels are faster at few columns when these are the rows of the
    # result, which autograd then copies: always up to twelve columns, up to 32 (no more were tried) where `out` is
    # large; elsewhere the copy tips the scale.
    (tokens, out), rank = grad_output.shape, x.shape[1]
    if grad_output.device.type == "cpu" and (rank <= 12 or (rank <= 32 and out >= 1024 and tokens >= 64)):
        return (x.t() @ grad_output).t()
    return grad_output.t() @ x


class PartialLinear(torch.autograd.Function):
    """`Y = X Wᵀ + b`, with gradients for `X`, `b` and the columns of each adapter, and for nothing else.

    Forward is the frozen layer's own GEMM (paper, eq. 7), and so is the input gradient (eq. 8). What is kept for
    backward is `X[..., I]`, `r` of the `in` channels, and the loan, which has the columns in `W` for both GEMMs.
    Compiled code has operators in place of these products, and the weight in place of the loan.

    Small steps wait for this code, in each layer and both ways. So it calls few functions of its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., in)
        bias: Tensor | None,  # (out,)
        loan: Any,  # of W, (out, in); compiled: W itself
        indices: tuple[Tensor, ...],  # one (r,) per adapter
        scalings: tuple[float, ...],
        gathered: tuple[Tensor | None, ...],  # the slices X[..., I] that were gathered before, (..., r) each, or None
        *deltas: Tensor,  # one (out, r) per adapter
    ) -> Tensor:
        if isinstance(loan, Tensor):
            y = linear_op(x, loan, bias, list(indices), list(deltas), list(scalings))
        else:
            loan.dtype = x.dtype
            with loan as weight, plainly():
                y = F.linear(x, weight, bias)
            if y._is_view():
                y = no_view(y)
        # Autocast runs the GEMM in y's dtype; the slices are kept in it too, as autocast's own graph would.
        dtype, slices = y.dtype, []
        for index, before, needed in zip(indices, gathered, ctx.needs_input_grad[6:], strict=True):
            part = None
            if needed:
                part = x.index_select(-1, index) if before is None else before
                part = part if part.dtype == dtype else part.to(dtype)
            slices.append(part)
        keep_for_backward(ctx, slices, loan, indices, deltas, scalings)
        ctx.dtypes = (x.dtype, None if bias is None else bias.dtype, [delta.dtype for delta in deltas])
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradients are right, a second derivative is refused
            return _gradients_once(ctx, grad_output)
        return _gradients(ctx, grad_output)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    x_dtype, bias_dtype, delta_dtypes = ctx.dtypes
    loan, dtype = ctx.loan, grad_output.dtype
    slices, operands = kept_for_backward(ctx)
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:  # ∇X = ∇Y W
        if operands is not None:
            weight, updates = operands
            grad_x = linear_input_gradient_op(grad_output, weight, *updates)
        else:
            loan.dtype = dtype
            with loan as weight, plainly():
                grad_x = grad_output @ (weight if weight.dtype == dtype else weight.to(dtype))
        grad_x = grad_x if dtype == x_dtype else grad_x.to(x_dtype)
        del weight
    if loan is not None:
        loan.finish()
    grad_tokens = grad_output.reshape(-1, grad_output.shape[-1])
    if ctx.needs_input_grad[1]:
        grad_bias = grad_tokens.sum(0).to(bias_dtype)
    grad_deltas = []
    for x_slice, scaling, delta_dtype in zip(slices, ctx.scalings, delta_dtypes, strict=True):
        grad = None
        if x_slice is not None:  # ∇Δ = s · ∇W[:, I]
            grad = column_gradient(grad_tokens, x_slice.reshape(-1, x_slice.shape[-1]))
            grad = grad if dtype == delta_dtype else grad.to(delta_dtype)
            grad = grad if scaling == 1 else grad * scaling
        grad_deltas.append(grad)
    return grad_x, grad_bias, None, None, None, None, *grad_deltas


_gradients_once = once_differentiable(_gradients)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """An input in the dtype that autocast computes in, if it is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def keep_for_backward(
    ctx: Any,
    slices: Sequence[Tensor | None],
    loan: Any,
    indices: Sequence[Tensor],
    deltas: Sequence[Tensor],
    scalings: Sequence[float],
) -> None:
    """Have a function's context keep what its backward needs: for compiled code, the operators' operands as well.

    Args:
        ctx: The context of an autograd function's forward.
        slices: Of each update, what its gradient is computed from; None where none is needed.
        loan: Has the columns in the weight; in compiled code the weight itself.
        indices: The connections of each update.
        deltas: The updates.
        scalings: Of each update.
    """
    compiled = isinstance(loan, Tensor)
    ctx.save_for_backward(*slices, *((loan, *indices, *deltas) if compiled else ()))
    ctx.loan, ctx.scalings = None if compiled else loan, scalings


def kept_for_backward(ctx: Any) -> tuple[Any, Any]:
    """What `keep_for_backward` has kept.

    Args:
        ctx: The context of an autograd function's backward.

    Returns:
        The slices; and in compiled code the weight and the updates as operators take them, else None.
    """
    count = len(ctx.scalings)
    saved = ctx.saved_tensors  # unpacked once: a checkpoint gives them once
    slices, operands = saved[:count], saved[count:]
    if not operands:
        return slices, None
    weight, *updates = operands
    return slices, (weight, (updates[:count], updates[count:], list(ctx.scalings)))


def no_view(y: Tensor) -> Tensor:
    """An output that whoever gets it may change in place, as it may the plain layer's.

    Autograd refuses that for a view made within a function, and PyTorch computes some outputs in another shape.

    Args:
        y: What a function's forward has computed, over memory that nobody else has.

    Returns:
        The same memory.
    """
    return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y


def require_frozen(weight: Tensor | None) -> None:
    """Refuse a weight that requires a gradient itself: it would get none, without a word.

    Args:
        weight: An adapted layer's; None if it is quantized.

    Raises:
        PacaError: If it does, and gradients are being computed.
    """
    with plainly():  # the question would go through __torch_function__ of a weight in the layout of training
        is_trained = weight is not None and weight.requires_grad
    if is_trained and torch.is_grad_enabled():
        raise PacaError(
            "The weight of an adapted layer requires a gradient, but only its columns are trained. Freeze it "
            "(weight.requires_grad_(False)), or leave the layer out of target_modules and name it in modules_to_save."
        )


def partial_linear(
    x: Tensor,
    bias: Tensor | None,
    loan: Any,
    updates: Sequence[ColumnUpdate],
    gathered: tuple[Tensor | None, ...] = (),
) -> Tensor:
    """A linear layer whose weight holds adapted columns, differentiable in these columns.

    Computes `Y = X Wᵀ + b` with `∇X = ∇Y W` and `∇Δₖ = sₖ · ∇Yᵀ X[..., Iₖ]` for every adapter `k` (paper, eq. 7 to
    9).

    Args:
        x: Input, shape `(..., in)`, any number of leading dimensions.
        bias: Shape `(out,)`, trained if it requires a gradient.
        loan: Has the columns in the weight, `(out, in)`, in forward and again in backward. In compiled code the
            weight itself, which holds its pretrained values.
        updates: The updates that are trained; in compiled code all of them.
        gathered: `X[..., Iₖ]` of each update where another layer has gathered it already, else None.

    Returns:
        Shape `(..., out)`.
    """
    indices, deltas, scalings, *_ = zip(*updates, strict=True) if updates else ((), (), ())
    gathered = gathered or (None,) * len(indices)
    return PartialLinear.apply(in_autocast_dtype(x), bias, loan, indices, scalings, gathered, *deltas)
