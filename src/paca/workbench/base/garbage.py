"""Keeps Python's garbage collector off what imports make: it would go through all of it many times over."""

import atexit
import contextlib
import gc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def imports_spared() -> Iterator[Callable[[], None]]:
    """Collect nothing in a `with` block until the function that it gives is called, and from then on only what is new.

    Nor is anything collected when the process ends: torch and transformers alone are two seconds' work.
    """
    collected = gc.isenabled()
    gc.disable()

    def imported() -> None:
        gc.freeze()
        if collected:
            gc.enable()

    atexit.register(gc.freeze)
    try:
        yield imported
    finally:
        gc.unfreeze()
        if collected:
            gc.enable()
