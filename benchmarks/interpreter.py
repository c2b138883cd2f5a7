"""Triton's kernels without a GPU: its interpreter runs them on tensors of the CPU, slowly."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from paca.method.columns import together

KERNELS = "paca.method.columns.kernel"


@contextmanager
def interpreted() -> Iterator[None]:
    """Have the columns of weights on the CPU moved by interpreted kernels."""
    before = os.environ.get("TRITON_INTERPRET"), sys.modules.pop(KERNELS, None)
    os.environ["TRITON_INTERPRET"] = "1"  # asked when a kernel is defined
    together.KERNEL_DEVICES.add("cpu")
    try:
        importlib.import_module(KERNELS)
        yield
    finally:
        together.KERNEL_DEVICES.discard("cpu")
        del os.environ["TRITON_INTERPRET"], sys.modules[KERNELS]
        if before[0] is not None:
            os.environ["TRITON_INTERPRET"] = before[0]
        if before[1] is not None:
            sys.modules[KERNELS] = before[1]
