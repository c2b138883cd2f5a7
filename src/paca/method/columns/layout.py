"""The memory layout in which columns are written fastest, and how it is given back.

In a row-major weight every element of a column lies in a cache line of its own, and on the CPU writing columns is
bound by that traffic: 39 ms for all writes of SmolLM2 at rank 16, against 9 ms where each column is one run of memory.
Its float32 and float64 GEMMs take both layouts equally fast; its bfloat16 ones do not (measured: ten times slower),
and GPUs write scattered columns fast enough.

So a float weight on the CPU is transposed in memory while it is trained. Its values and its shape don't change, and
whoever takes hold of its memory from outside finds the ordinary layout again.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .lease import make_pretrained


class ConnectionMajorParameter(nn.Parameter):
    """A weight `(out, in)` that lies in memory as `(in, out)`, until somebody looks at it as memory."""

    def view(self, *shape: Any) -> Tensor:
        """As any tensor's, of the weight in its ordinary layout."""
        lay_out_row_major(self)
        return torch.Tensor.view(self, *shape)

    def detach(self) -> Tensor:
        """As any tensor's, of the weight in its ordinary layout."""
        lay_out_row_major(self)
        return torch.Tensor.detach(self)

    def __deepcopy__(self, memo: Any) -> nn.Parameter:
        lay_out_row_major(self)
        return copy.deepcopy(self, memo)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """As any tensor's, of the weight in its ordinary layout."""
        lay_out_row_major(self)
        return _DATA.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        self.__class__ = nn.Parameter  # type: ignore[assignment]
        _DATA.__set__(self, value)


_DATA: Any = torch.Tensor.data


def writes_faster_connection_major(weight: Any) -> bool:
    """Whether a weight `(out, in)` is one whose columns are written faster in the transposed layout."""
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and weight.dim() == 2
        and weight.is_contiguous()
        and not weight.is_shared()
        and weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
    )


def lay_out_connection_major(weight: nn.Parameter) -> None:
    """Have each column lie in one run of memory.

    Args:
        weight: One of which `writes_faster_connection_major` is true; it holds its pretrained values.
    """
    weight.data = weight.data.t().contiguous().t()
    weight.__class__ = ConnectionMajorParameter


def lay_out_row_major(weight: Any) -> None:
    """Give a weight its ordinary memory layout back, with the pretrained values in it.

    Args:
        weight: Any parameter; nothing happens to one that has the ordinary layout.
    """
    if type(weight) is ConnectionMajorParameter:
        make_pretrained(weight)
        weight.__class__ = nn.Parameter  # type: ignore[assignment]
        weight.data = weight.data.contiguous()
