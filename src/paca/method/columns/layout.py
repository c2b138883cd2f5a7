"""The memory layout in which columns are written fastest, and how it is given back.

In a row-major weight every element of a column lies in a cache line of its own, and on the CPU writing columns is
bound by that traffic: 39 ms for all writes of SmolLM2 at rank 16, against 9 ms where each column is one run of memory.
Its float32 and float64 GEMMs take both layouts equally fast; its bfloat16 ones do not (measured: ten times slower),
and GPUs write scattered columns fast enough.

So a float weight on the CPU is transposed in memory while it is trained. Its values and its shape don't change, and
whoever takes hold of its memory from outside finds the ordinary layout again. Compiled code is made for the layout
that it sees, so from the first compilation in a process on, all weights keep the ordinary one.
"""

from __future__ import annotations

import copy
import weakref
from threading import Event
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from .lease import is_pinned, make_pretrained, plainly


class ConnectionMajorParameter(nn.Parameter):
    """A weight `(out, in)` that lies in memory as `(in, out)` until somebody looks at it.

    Products with it, and questions about its shape, its device and the like, leave it as it is. Whatever else is
    computed from it, viewed of it or copied of it finds the ordinary layout: results keep the strides of their
    operands, and code from outside takes those of a weight for granted (PyTorch's pruning calls `view(-1)`). A call
    that multiplies with the memory as it lies comes first.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _LEAVE_IT:
            for operand in tree_leaves((args, kwargs)):
                if type(operand) is cls and not is_pinned(operand):
                    lay_out_row_major(operand)
        with plainly():
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: Any) -> nn.Parameter:
        lay_out_row_major(self)  # else the copy would be of this class
        return copy.deepcopy(self, memo)


_ASKED = [
    *("device", "dtype", "grad", "is_cpu", "is_cuda", "is_leaf", "is_meta", "itemsize", "layout", "nbytes", "ndim"),
    *("requires_grad", "shape"),
]
_LEAVE_IT = {
    *(getattr(torch.Tensor, name).__get__ for name in _ASKED),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.element_size, Tensor.is_floating_point, Tensor.requires_grad_),
    *(Tensor.untyped_storage, Tensor.storage_offset, Tensor.data_ptr),  # whoever counts bytes doesn't read them
    *(F.linear, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.matmul),
}


_TRANSPOSED: Any = WeakIdKeyDictionary()  # the weights that have this layout now
_WATCHED = Event()  # set when the first of them got it: `_StartCallback` is registered from then on
_COMPILED = Event()  # set when something is compiled after the first of them got it


class _StartCallback:
    """What is done when a compilation starts."""

    def __call__(self, _: Any) -> None:
        _COMPILED.set()
        for weight in list(_TRANSPOSED):
            lay_out_row_major(weight)


def _watch_compilation() -> None:
    # PyTorch has loaded this for its optimizers; at the top it would cost half of `import paca`.
    from torch._dynamo.callback import callback_handler

    callback = callback_handler.register_start_callback(_StartCallback())
    # `torch.compiler.reset()` drops all callbacks. Nobody else holds this one, so that its end tells of it.
    weakref.finalize(callback, _watch_compilation).atexit = False


def writes_faster_connection_major(weight: Any) -> bool:
    """Whether a weight `(out, in)` is one whose columns are written faster in the transposed layout."""
    return (
        type(weight) is nn.Parameter
        and not _COMPILED.is_set()
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
    if not _WATCHED.is_set():
        _WATCHED.set()
        _watch_compilation()
    weight.data = weight.data.t().contiguous().t()
    weight.__class__ = ConnectionMajorParameter
    _TRANSPOSED[weight] = None


def lay_out_row_major(weight: Any) -> None:
    """Give a weight its ordinary memory layout back, with the pretrained values in it.

    Args:
        weight: Any parameter; nothing happens to one that has the ordinary layout.
    """
    if type(weight) is ConnectionMajorParameter:
        weight.__class__ = nn.Parameter  # type: ignore[assignment]
        del _TRANSPOSED[weight]
        make_pretrained(weight)
        weight.data = weight.data.contiguous()
