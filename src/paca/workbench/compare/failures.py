"""What a method that can't be measured says in its row."""

from typing import Any

import torch

from paca.errors import PacaError

# How allocators say it; torch raises a plain RuntimeError on CPUs.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
KILLED = "the process was killed, most likely because the machine had no memory left"


class OutOfMemoryError(PacaError):
    """A method needs needs hardly there is, or than it may use."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory was lacking."""
    if isinstance(error, (MemoryError, OutOfMemoryError, torch.OutOfMemoryError)):
        return True
    return any(sign in str(error).lower() for sign in _SIGNS)


def describe_failure(error: BaseException) -> dict[str, Any]:
    """Describe an error for a table's row and for JSON: `error`, one line, and `out_of_memory`."""
    text = " ".join(str(error).split()) or type(error).__name__
    lacking = is_out_of_memory(error)
    if lacking:
        text = f"out of memory: {text}"
    elif not isinstance(error, PacaError):
        text = f"{type(error).__name__}: {text}"
    return {"error": text[:500], "out_of_memory": lacking}
