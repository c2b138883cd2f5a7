"""Products over adapted weights as operators that `torch.compile` takes as they are.

A write that the compiler sees costs a copy of the whole weight: what is changed in place becomes a new tensor, and a
second change of it in one graph is not made in place again (torch 2.14). Each operator here has the columns in the
weight for the moment of its product. When it returns, the weight is what it was, so it declares that it changes
nothing; and it reads `Δ` as it is when it runs.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - the schemas say the types, in the operators' own language
# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakIdKeyDictionary

from ..columns.lease import Lease, Loan, Stay
from ..columns.resident import Columns, DepthwiseColumns
from ..columns.update import ColumnUpdate

_LIBRARY = torch.library.Library("paca", "DEF")
_UPDATES = "Tensor[] indices, Tensor[] deltas, float[] scalings"
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
_MATRIX, _TABLE = (Columns, 1, 1), (Columns, 0, 0)  # how a weight's columns lie in it: the class and its arguments
_COLUMNS: Any = WeakIdKeyDictionary()  # of each weight, by layout, since they remember where connections lie


def _operator(name: str, arguments: str) -> Any:
    # torch.library.custom_op does more in every call, for operators that are differentiated or change something.
    def define(function: Any) -> Any:
        _LIBRARY.define(f"{name}({arguments}, {_UPDATES}) -> Tensor")
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.paca, name).default

    return define


def _fake(operator: Any) -> Any:
    return torch.library.register_fake(operator, lib=_LIBRARY)


def _adapted(layout, weight, indices, deltas, scalings) -> Loan:
    known = _COLUMNS.setdefault(weight, {})
    columns = known.get(layout)
    if columns is None:
        kind, *sizes = layout
        columns = known[layout] = kind(*sizes)
    lease = Lease()
    stay = Stay(lease, columns, weight, tuple(map(ColumnUpdate, indices, deltas, scalings)))
    lease.stays.append(stay)
    return Loan(lease, stay)


@_operator("linear", "Tensor x, Tensor weight, Tensor? bias")
def linear_op(x, weight, bias, indices, deltas, scalings):
    """`X Wᵀ + b`, with `W` of shape `(out, in)`."""
    with _adapted(_MATRIX, weight, indices, deltas, scalings) as adapted:
        return F.linear(x, adapted.to(x.dtype), None if bias is None else bias.to(x.dtype))


@_fake(linear_op)
def _(x, weight, bias, indices, deltas, scalings):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@_operator("linear_input_gradient", "Tensor grad_output, Tensor weight")
def linear_input_gradient_op(grad_output, weight, indices, deltas, scalings):
    """`∇Y W`."""
    with _adapted(_MATRIX, weight, indices, deltas, scalings) as adapted:
        return grad_output @ adapted.to(grad_output.dtype)


@_fake(linear_input_gradient_op)
def _(grad_output, weight, indices, deltas, scalings):
    return grad_output.new_empty(*grad_output.shape[:-1], weight.shape[1])


@_operator("convolution", f"Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}")
def convolution_op(x, weight, bias, stride, padding, dilation, groups, indices, deltas, scalings):
    """`X ∗ W + b`, with `W` of shape `(out, in/g, *k)`."""
    with _adapted(_channels(weight, groups), weight, indices, deltas, scalings) as adapted:
        return _convolve(x, adapted, bias, stride, padding, dilation, groups)


@_fake(convolution_op)
def _(x, weight, bias, stride, padding, dilation, groups, indices, deltas, scalings):
    return _convolve(x, weight, bias, stride, padding, dilation, groups)


@_operator("convolution_input_gradient", f"Tensor grad_output, Tensor x, Tensor weight, {_GEOMETRY}")
def convolution_input_gradient_op(
    grad_output, x, weight, stride, padding, dilation, groups, indices, deltas, scalings
):
    """The gradient of a convolution for its input, of which only the shape of `x` is needed."""
    with _adapted(_channels(weight, groups), weight, indices, deltas, scalings) as adapted:
        options = (None, stride, padding, dilation, False, [0] * len(stride), groups, [True, False, False])
        return torch.ops.aten.convolution_backward(grad_output, x, adapted.to(grad_output.dtype), *options)[0]


@_fake(convolution_input_gradient_op)
def _(grad_output, x, weight, stride, padding, dilation, groups, indices, deltas, scalings):
    return grad_output.new_empty(x.shape)


@_operator("embedding", "Tensor ids, Tensor weight")
def embedding_op(ids, weight, indices, deltas, scalings):
    """`E[T]`, with `E` of shape `(vocab, d)`."""
    with _adapted(_TABLE, weight, indices, deltas, scalings) as adapted:
        return F.embedding(ids, adapted)


@_fake(embedding_op)
def _(ids, weight, indices, deltas, scalings):
    return weight.new_empty(*ids.shape, weight.shape[1])


def _channels(weight, groups):
    return (DepthwiseColumns, groups) if groups > 1 and weight.shape[1] == 1 else _MATRIX


def _convolve(x, weight, bias, stride, padding, dilation, groups):
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    bias = None if bias is None else bias.to(x.dtype)
    return convolve(x, weight.to(x.dtype), bias, stride, padding, dilation, groups)
