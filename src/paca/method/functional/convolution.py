"""The mathematics of a partially trained convolution, as one autograd function.

The convolution's counterpart of `linear.py`. Dimension letters:

    X  (n, in, …)     input                    W  (out, in/g, *k)  weight, with the adapted values in it
    Y  (n, out, …)    output                   Δ                   what is trained, at the connections `I`
    g                 groups                   s                   scaling, `alpha / r`

A connection is an input channel of `W`; in a grouped convolution, the same one of every group, so that `Δ` is
`(out, r, *k)`. In a depthwise one (`in/g = 1`) it is a channel, with all its filters: `Δ` is `(r, out/g, *k)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..columns.update import ColumnUpdate
from .compiled import convolution_input_gradient_op, convolution_op
from .linear import in_autocast_dtype, keep_for_backward, kept_for_backward


class Geometry(NamedTuple):
    """How a convolution walks over its input; one number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Part(NamedTuple):
    """The convolution that a set of connections makes by itself."""

    inputs: Tensor  # its input channels
    outputs: Tensor | None  # its output channels; None: all
    groups: int


def is_depthwise(shape: Sequence[int], groups: int) -> bool:
    """Whether every input channel has filters of its own.

    Args:
        shape: The weight's, `(out, in/g, *k)`.
        groups: `g`.

    Returns:
        Whether it is so.
    """
    return groups > 1 and shape[1] == 1


def connection_part(indices: Tensor, shape: Sequence[int], groups: int) -> Part:
    """The channels that selected connections read and write.

    Args:
        indices: The connections `I`, shape `(r,)`.
        shape: The weight's, `(out, in/g, *k)`.
        groups: `g`.

    Returns:
        The input channels, `I` of every group; for a depthwise convolution also the output channels.
    """
    out, per_group = shape[:2]
    if groups == 1:
        return Part(indices, None, 1)
    if is_depthwise(shape, groups):
        multiplier = out // groups
        outputs = (indices[:, None] * multiplier + torch.arange(multiplier, device=indices.device)).flatten()
        return Part(indices, outputs, len(indices))
    first = torch.arange(groups, device=indices.device)[:, None] * per_group
    return Part((first + indices).flatten(), None, groups)


class PartialConvolution(torch.autograd.Function):
    """`Y = X ∗ W + b`, with gradients for `X`, `b` and the selected connections, and for nothing else.

    What is kept for backward is the selected channels of `X`, and the loan.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (n, in, …)
        bias: Tensor | None,  # (out,)
        loan: Any,  # of W, (out, in/g, *k); compiled: W itself
        shape: tuple[int, ...],  # of W
        geometry: Geometry,
        indices: tuple[Tensor, ...],  # one (r,) per adapter
        scalings: tuple[float, ...],
        *deltas: Tensor,
    ) -> Tensor:
        if isinstance(loan, Tensor):
            y = convolution_op(x, loan, bias, *geometry, list(indices), list(deltas), list(scalings))
        else:
            with loan as weight:
                y = _convolve(x, weight, bias, geometry)
        parts = [
            connection_part(index, shape, geometry.groups) if needed else None
            for index, needed in zip(indices, ctx.needs_input_grad[7:], strict=True)
        ]
        slices = [None if part is None else x.index_select(1, part.inputs).to(y.dtype) for part in parts]
        keep_for_backward(ctx, slices, loan, indices, deltas, scalings)
        ctx.geometry, ctx.parts = geometry, parts
        ctx.x_shape, ctx.delta_shapes = x.shape, [delta.shape for delta in deltas]
        ctx.dtypes = (x.dtype, None if bias is None else bias.dtype, [delta.dtype for delta in deltas])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        x_dtype, bias_dtype, delta_dtypes = ctx.dtypes
        slices, operands = kept_for_backward(ctx)
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            x = grad_output.new_empty(1).expand(ctx.x_shape)  # its shape is all that the input gradient needs
            if operands is not None:
                weight, updates = operands
                grad_x = convolution_input_gradient_op(grad_output, x, weight, *ctx.geometry, *updates)
            else:
                with ctx.loan as weight:
                    grad_x = _backward(grad_output, x, weight.to(grad_output.dtype), ctx.geometry, 0)
            grad_x = grad_x.to(x_dtype)
        if ctx.loan is not None:
            ctx.loan.finish()
        if ctx.needs_input_grad[1]:
            grad_bias = grad_output.transpose(0, 1).flatten(1).sum(1).to(bias_dtype)
        grad_deltas: list[Tensor | None] = []
        of_adapter = zip(slices, ctx.parts, ctx.scalings, ctx.delta_shapes, delta_dtypes, strict=True)
        for x_slice, part, scaling, shape, dtype in of_adapter:
            if part is None:
                grad_deltas.append(None)
                continue
            grad_part = grad_output if part.outputs is None else grad_output.index_select(1, part.outputs)
            like = grad_output.new_empty(1).expand(_filters(shape, part))
            grad = _backward(grad_part, x_slice, like, ctx.geometry._replace(groups=part.groups), 1).to(dtype)
            grad_deltas.append(grad.reshape(shape) * scaling)  # ∇Δ = s · ∇W at the connections
        return grad_x, grad_bias, None, None, None, None, None, *grad_deltas


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(geometry.stride) - 1]
    return convolve(x, weight, bias, *geometry)


def _filters(shape: Sequence[int], part: Part) -> tuple[int, ...]:
    """The shape of an update as the weight of the convolution that its connections make by themselves."""
    return tuple(shape) if part.outputs is None else (shape[0] * shape[1], 1, *shape[2:])


def _backward(grad_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, which: int) -> Tensor:
    """PyTorch's gradient of a convolution for its input (`which` 0) or its weight (1)."""
    stride, padding, dilation, groups = geometry
    zeros = [0] * len(stride)
    gradients = torch.ops.aten.convolution_backward(
        grad_output, x, weight, None, stride, padding, dilation, False, zeros, groups, [which == 0, which == 1, False]
    )
    return gradients[which]


def partial_conv(
    x: Tensor,
    bias: Tensor | None,
    loan: Any,
    shape: Sequence[int],
    geometry: Geometry,
    updates: Sequence[ColumnUpdate],
) -> Tensor:
    """A convolution in one to three dimensions whose weight holds adapted connections, differentiable in these.

    Computes `Y = X ∗ W + b`, and `∇Δₖ = sₖ · ∇W` at the connections `Iₖ` for every adapter `k`, from these channels
    of `X` alone.

    Args:
        x: Input, shape `(n, in, …)` or `(in, …)`, padded already where `geometry` cannot say how.
        bias: Shape `(out,)`, trained if it requires a gradient.
        loan: Has the columns in the weight, `(out, in/g, *k)`, in forward and again in backward. In compiled code the
            weight itself, which holds its pretrained values.
        shape: The weight's.
        geometry: Stride, zero padding, dilation and groups.
        updates: The updates that are trained, each `(out, r, *k)`; depthwise `(r, out/g, *k)`. In compiled code all.

    Returns:
        Shape `(n, out, …)` or `(out, …)`.
    """
    x = in_autocast_dtype(x)
    batched = x.dim() == len(shape)
    rows = x if batched else x[None]
    indices = tuple(update.indices for update in updates)
    scalings = tuple(update.scaling for update in updates)
    deltas = (update.delta for update in updates)
    y: Tensor = PartialConvolution.apply(rows, bias, loan, tuple(shape), geometry, indices, scalings, *deltas)
    return y if batched else y[0]


def conv_update(x: Tensor, delta: Tensor, indices: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    """What an update adds to a convolution's output: `X ∗ Δ`, from the selected channels alone.

    Args:
        x: Input, shape `(n, in, …)` or `(in, …)`, padded already where `geometry` cannot say how.
        delta: `Δ`, shape `(out, r, *k)`; depthwise `(r, out/g, *k)`.
        indices: Its connections, shape `(r,)`.
        shape: The weight's, `(out, in/g, *k)`.
        geometry: Stride, zero padding, dilation and groups.

    Returns:
        Shape `(n, out, …)` or `(out, …)`.
    """
    batched = x.dim() == len(shape)
    rows = x if batched else x[None]
    part = connection_part(indices, shape, geometry.groups)
    filters = delta.reshape(_filters(delta.shape, part))
    y = _convolve(rows.index_select(1, part.inputs), filters, None, geometry._replace(groups=part.groups))
    if part.outputs is not None:
        y = y.new_zeros(len(y), shape[0], *y.shape[2:]).index_copy(1, part.outputs, y)
    return y if batched else y[0]
