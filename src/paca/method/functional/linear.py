"""The mathematics of a partially trained linear layer, as one autograd function.

PaCA (https://arxiv.org/abs/2503.01905) trains `r` input columns of a weight `W` in place. Dimension letters, here
and in the layers:

    X  (..., in)    input                    W  (out, in)  weight; its columns `I` already hold the adapted values
    Y  (..., out)   output                   Δ  (out, r)   what is trained: `W[:, I] = W₀[:, I] + s·Δ`
    I  (r,)         the partial connections  s             scaling, `alpha / r`
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import PacaError
from ..columns.dequantized import DequantizedColumns
from ..columns.resident import Columns, Shown


def column_gradient(grad_output: Tensor, x: Tensor) -> Tensor:
    """The gradient of the selected columns, `∇W[:, I] = ∇Yᵀ X[:, I]` (paper, eq. 9).

    Args:
        grad_output: `∇Y`, shape `(tokens, out)`.
        x: `X[:, I]`, shape `(tokens, r)`.

    Returns:
        Shape `(out, r)`, in the dtype of `grad_output`.
    """
    # Both orders are the same product. CPU GEMM kernels are about three times faster at few columns when these are
    # the rows of the result; from about twelve columns on, the copy that the transposed result costs tips the scale.
    if grad_output.device.type == "cpu" and x.shape[1] <= 12:
        return (x.t() @ grad_output).t()
    return grad_output.t() @ x


class PartialLinear(torch.autograd.Function):
    """`Y = X Wᵀ + b`, with gradients for `X`, `b` and the columns of each adapter, and for nothing else.

    Forward is the frozen layer's own GEMM (paper, eq. 7), and so is the input gradient (eq. 8). What is kept for
    backward is `W`, which lives anyway, and `X[..., I]`, `r` of the `in` channels. Without a resident `W`, it is made
    from its packed form for each of the two GEMMs, and never kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., in)
        weight: Tensor | None,  # (out, in), frozen; None: `columns` makes it
        bias: Tensor | None,  # (out,)
        columns: Columns | DequantizedColumns | None,
        shown: Shown | None,
        indices: tuple[Tensor, ...],  # one (r,) per adapter
        scalings: tuple[float, ...],
        gathered: tuple[Tensor | None, ...],  # the slices X[..., I] that were gathered before, (..., r) each
        *deltas: Tensor,  # one (out, r) per adapter
    ) -> Tensor:
        y = F.linear(x, _resident_or_made(weight, columns, shown, x.dtype), bias)
        # Autocast runs the GEMM in y's dtype; the slices are kept in it too, as autocast's own graph would.
        needed = ctx.needs_input_grad[8:]
        slices = [
            _cast(x.index_select(-1, index) if before is None else before, y.dtype) if n else None
            for index, before, n in zip(indices, gathered or (None,) * len(indices), needed, strict=True)
        ]
        ctx.save_for_backward(weight, *slices)
        ctx.columns, ctx.shown, ctx.scalings = columns, shown, scalings
        ctx.dtypes = (x.dtype, None if bias is None else bias.dtype, [delta.dtype for delta in deltas])
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradients are right, a second derivative is refused
            return _gradients_once(ctx, grad_output)
        return _gradients(ctx, grad_output)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    weight, *slices = ctx.saved_tensors
    x_dtype, bias_dtype, delta_dtypes = ctx.dtypes
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        if ctx.columns is not None:
            ctx.columns.show_again(ctx.shown)
        matrix = _resident_or_made(weight, ctx.columns, ctx.shown, grad_output.dtype)
        grad_x = _cast(grad_output @ _cast(matrix, grad_output.dtype), x_dtype)  # ∇X = ∇Y W
        del matrix
    grad_tokens = grad_output.reshape(-1, grad_output.shape[-1])
    if ctx.needs_input_grad[2]:
        grad_bias = _cast(grad_tokens.sum(0), bias_dtype)
    grad_deltas: list[Tensor | None] = []
    for x_slice, scaling, dtype in zip(slices, ctx.scalings, delta_dtypes, strict=True):
        if x_slice is None:
            grad_deltas.append(None)
            continue
        grad = _cast(column_gradient(grad_tokens, x_slice.reshape(-1, x_slice.shape[-1])), dtype)
        grad_deltas.append(grad if scaling == 1 else grad * scaling)  # ∇Δ = s · ∇W[:, I]
    return grad_x, None, grad_bias, None, None, None, None, None, *grad_deltas


_gradients_once = once_differentiable(_gradients)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _resident_or_made(weight: Tensor | None, columns: Any, shown: Shown | None, dtype: torch.dtype) -> Tensor:
    return columns.matrix(shown, dtype) if weight is None else weight


def require_frozen(weight: Tensor | None) -> None:
    """Refuse a weight that requires a gradient itself: it would get none, without a word.

    Args:
        weight: An adapted layer's; None if it is packed.

    Raises:
        PacaError: If it does, and gradients are being computed.
    """
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise PacaError(
            "The weight of an adapted layer requires a gradient, but only its columns are trained. Freeze it "
            "(weight.requires_grad_(False)), or leave the layer out of target_modules and name it in modules_to_save."
        )


def partial_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    indices: tuple[Tensor, ...],
    scalings: tuple[float, ...],
    deltas: tuple[Tensor, ...],
    columns: Columns | DequantizedColumns | None = None,
    shown: Shown | None = None,
    gathered: tuple[Tensor | None, ...] = (),
) -> Tensor:
    """A linear layer whose weight holds adapted columns, differentiable in these columns.

    Computes `Y = X Wᵀ + b` with `∇X = ∇Y W` and `∇Δₖ = sₖ · ∇Yᵀ X[..., Iₖ]` for every adapter `k` (paper, eq. 7 to
    9). The values of `deltas` are not read: the weight holds them already, or `shown` names them.

    Args:
        x: Input, shape `(..., in)`, any number of leading dimensions.
        weight: Shape `(out, in)`, frozen, its columns adapted. None for a packed one, which `columns` unpacks.
        bias: Shape `(out,)`, trained if it requires a gradient.
        indices: The connections `Iₖ` of each adapter, each of shape `(r,)`.
        scalings: `sₖ = alpha / r` of each adapter.
        deltas: The trained updates `Δₖ`, each of shape `(out, r)`.
        columns: Keeper of the weight's columns; asked in backward to show what forward used. None while compiling.
        shown: What the weight shows now.
        gathered: `X[..., Iₖ]` of each adapter where another layer has gathered it already, else None.

    Returns:
        Shape `(..., out)`.

    """
    require_frozen(weight)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = _cast(x, torch.get_autocast_dtype(device))
    return PartialLinear.apply(x, weight, bias, columns, shown, indices, scalings, gathered, *deltas)
