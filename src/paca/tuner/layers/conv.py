"""PaCA on convolutions in one to three dimensions: plain, grouped and depthwise.

A connection is an input channel; in a grouped convolution the same one of every group, so that `Δ` is `(out, r, *k)`.
In a depthwise one it is a channel with all its filters, and `Δ` is `(r, out/c, *k)`.

A subclass may pad in its own way, if it is listed here. One that does anything else in its forward is refused:
convolving with its plain weight would change what it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...method.columns.resident import Columns, DepthwiseColumns
from ...method.columns.update import ColumnUpdate
from ...method.functional.convolution import Geometry, conv_update, is_depthwise, partial_conv
from .base import PacaLayer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Padded = tuple[Tensor, tuple[int, ...]]  # an input, and the zeros still to be put on both sides of each dimension


def pad_as_torch(base: Any, x: Tensor) -> Padded:
    """The padding of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`, in all their modes.

    Args:
        base: The layer.
        x: Its input.

    Returns:
        The input, padded where zeros on both sides are not it, and the zeros still to be put.
    """
    nothing = (0,) * len(base.kernel_size)
    both_sides = base._reversed_padding_repeated_twice
    if base.padding_mode != "zeros":
        return F.pad(x, both_sides, mode=base.padding_mode), nothing
    if not isinstance(base.padding, str):
        return x, base.padding
    if both_sides[::2] == both_sides[1::2]:
        return x, tuple(reversed(both_sides[::2]))
    return F.pad(x, both_sides), nothing


def pad_as_tensorflow(base: Any, x: Tensor) -> Padded:
    """TensorFlow's `"same"`: as many outputs as strides fit into the input, an odd zero at the end.

    Per dimension `max((⌈n/s⌉ − 1)·s + (k − 1)·d + 1 − n, 0)` zeros.

    Args:
        base: The layer.
        x: Its input.

    Returns:
        The input, padded where zeros on both sides are not it, and the zeros still to be put.
    """
    steps = zip(x.shape[-len(base.kernel_size) :], base.kernel_size, base.stride, base.dilation, strict=True)
    totals = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in steps]
    if all(total % 2 == 0 for total in totals):
        return x, tuple(total // 2 for total in totals)
    sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return F.pad(x, sides), (0,) * len(totals)


# The forwards that are a convolution with the layer's weight, by their full names, and how each pads. By name, so that
# a package need not be imported to know its layers.
PADDINGS: dict[str, Callable[[Any, Tensor], Padded]] = {
    "torch.nn.modules.conv.Conv1d.forward": pad_as_torch,
    "torch.nn.modules.conv.Conv2d.forward": pad_as_torch,
    "torch.nn.modules.conv.Conv3d.forward": pad_as_torch,
    "timm.layers.conv2d_same.Conv2dSame.forward": pad_as_tensorflow,
}


class Convolution(PacaLayer):
    """`nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` with adapted channels.

    Args:
        base_layer: The convolution.
    """

    connection_dim = 1
    converts_to_lora = False
    weight_dims = (3, 4, 5)

    def __init__(self, base_layer: Any) -> None:
        self.depthwise = is_depthwise(base_layer.weight.shape, base_layer.groups)
        self.connection_dim = self.delta_dim = 0 if self.depthwise else 1  # type: ignore[misc]
        self.pad = PADDINGS.get(_full_name(type(base_layer).forward), pad_as_torch)
        super().__init__(base_layer)

    @classmethod
    def problem(cls, base: Any) -> str | None:
        """Why a convolution cannot be adapted as it is: beside `PacaLayer.problem`, a forward of its own."""
        return cls._forward_problem(base, "convolve with its weight", "channels") or super().problem(base)

    @classmethod
    def connections(cls, base: Any) -> int:
        """A convolution's input channels per group; a depthwise one's channels."""
        return base.groups if is_depthwise(base.weight.shape, base.groups) else base.weight.shape[1]

    @classmethod
    def knows(cls, base_class: Any) -> bool:
        convolve = base_class._conv_forward
        return _full_name(base_class.forward) in PADDINGS and any(convolve is c._conv_forward for c in CONVOLUTIONS)

    def _features(self) -> tuple[int, int]:
        return self.connections(self.base_layer), self.base_layer.out_channels

    def _delta_shape(self, r: int) -> tuple[int, ...]:
        base = self.base_layer
        leading = (r, base.out_channels // base.groups) if self.depthwise else (base.out_channels, r)
        return (*leading, *base.kernel_size)

    def _new_columns(self) -> Columns:
        return DepthwiseColumns(self.base_layer.groups) if self.depthwise else super()._new_columns()

    def _padded(self, x: Tensor) -> tuple[Tensor, Geometry]:
        base = self.base_layer
        x, padding = self.pad(base, x)
        return x, Geometry(base.stride, padding, base.dilation, base.groups)

    def _multiply(self, x: Tensor, loan: Any, updates: tuple[ColumnUpdate, ...]) -> Tensor:
        x, geometry = self._padded(x)
        weight, bias = (self.base_layer._parameters[name] for name in ("weight", "bias"))
        return partial_conv(x, bias, loan, weight.shape, geometry, updates)

    def _additive(self, x: Tensor, update: ColumnUpdate) -> Tensor:
        x, geometry = self._padded(x.to(update.delta.dtype))
        base = self.base_layer
        shape = (base.out_channels, base.in_channels // base.groups, *base.kernel_size)
        return conv_update(x, update.delta, update.indices, shape, geometry) * update.scaling

    def _dense(self, indices: Tensor, update: Tensor) -> Tensor:
        dense = update.new_zeros(self._weight_shape())
        return (
            self.columns.rows(dense)
            .index_copy(0, indices, update.movedim(self.delta_dim, 0))
            .movedim(0, self.connection_dim)
            .reshape(dense.shape)
        )


def _full_name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"
