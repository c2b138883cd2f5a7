"""Which weights have their columns moved together.

On a GPU a small step waits for the host, which launches an operator for each weight. There one Triton kernel puts the
columns into all weights, and another one takes them out again (`kernel.py`). On other devices, and for what the
kernels don't take, each weight's columns are moved by PyTorch's operators.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from .update import ColumnUpdate

if TYPE_CHECKING:
    from .kernel import Kernels

KERNEL_DEVICES = {"cuda"}  # types of devices; ROCm's is called so as well


def kernels_for(rows: Tensor, update: ColumnUpdate) -> Kernels | None:
    """What moves a weight's columns together with those of others.

    Args:
        rows: The weight's memory, connections first.
        update: What is added to its columns.

    Returns:
        The kernels; None if there are none for it.
    """
    if rows.device.type not in KERNEL_DEVICES or is_fake(rows) or not has_triton():
        return None
    from .kernel import agreeing_kernels

    return agreeing_kernels(rows, update)


@cache
def has_triton() -> bool:
    """Whether Triton is installed; PyTorch brings it along where there may be a GPU."""
    return find_spec("triton") is not None
