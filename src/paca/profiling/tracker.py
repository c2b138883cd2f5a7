"""Counts the bytes of live storages while PyTorch code runs.

Every aten operator passes through a `TorchDispatchMode`, below autograd, so forward, backward and optimizer steps are
all seen. A storage is counted once, when an operator first returns a tensor on it, until it is freed; views and
`detach` count nothing. The numbers are those of the tensors themselves: no allocator's rounding or cache, and none of
what one operator allocates and frees inside itself. So they are exact, need no accelerator, and are the same on every
device, `meta` included.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .storages import storages_of

# `torch.tensor(...)` builds its result out of sight; this operator, its last, is the first that is dispatched.
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


class StorageTracker(TorchDispatchMode):
    """A context that counts the storages created inside it; made by `track`.

    After the context is left nothing new is counted, while `live_bytes` still falls as what was counted is freed.
    """

    def __init__(self, include: Iterable[Tensor] = ()) -> None:
        """Start counting at zero bytes, or at what the existing tensors in `include` stand on."""
        super().__init__()
        self._live_bytes = 0
        self._peak_bytes = 0
        # Keyed by id: a storage is one Python object for as long as it lives, and its reference's callback takes the
        # key out before the id can be used again.
        self._references: dict[int, weakref.ref[UntypedStorage]] = {}
        self._counted: dict[int, int] = {}
        for storage in storages_of(list(include)):
            self._count(storage)

    @property
    def live_bytes(self) -> int:
        """Bytes of the counted storages that are alive now.

        A storage that only a Python reference cycle holds is alive until the garbage collector has run.
        """
        return self._live_bytes

    @property
    def peak_bytes(self) -> int:
        """The most bytes that were alive at once, seen after each operator."""
        return self._peak_bytes

    def reset_peak(self) -> None:
        """Forget the peak so far: from here on it starts at the bytes that are alive now."""
        self._peak_bytes = self._live_bytes

    def __enter__(self) -> "StorageTracker":
        """Start counting; storages that are resized outside of operators, as FSDP2 does, are counted anew as well."""
        original = self._resize = UntypedStorage.resize_

        def resize(storage: UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            if id(storage) in self._counted:
                self._count(storage)
            return result

        UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Stop counting."""
        super().__exit__(*raised)
        UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count the storages that it made."""
        if any(_wraps_tensors(kind) for kind in types):
            return NotImplemented  # the subclass goes first; the operators that it runs come by here
        if func not in _LIFTS:
            for storage in storages_of((args, kwargs)):
                self._pass_over(storage)
        result = func(*args, **(kwargs or {}))
        for storage in storages_of(result):
            self._count(storage)
        return result

    def _pass_over(self, storage: UntypedStorage) -> None:
        """Remember a storage that was there before the operator that it is an input of, unless it is counted."""
        if id(storage) not in self._references:
            self._watch(storage)

    def _count(self, storage: UntypedStorage) -> None:
        """Count a storage that is new, or one that was counted and has been resized since."""
        key = id(storage)
        if key not in self._references:
            self._watch(storage)
            self._counted[key] = 0
        if key in self._counted:
            size = self._size(storage)
            self._live_bytes += size - self._counted[key]
            self._counted[key] = size
            self._peak_bytes = max(self._peak_bytes, self._live_bytes)

    def _size(self, storage: UntypedStorage) -> int:
        return storage.nbytes()

    def _closed(self, key: int) -> None:
        """Called when a counted storage is freed."""

    def _watch(self, storage: UntypedStorage) -> None:
        """Have the storage's books closed when it is freed."""
        key = id(storage)

        def close(_: Any) -> None:
            self._references.pop(key, None)
            if key in self._counted:
                self._live_bytes -= self._counted.pop(key)
                self._closed(key)

        self._references[key] = weakref.ref(storage, close)


def track(include: nn.Module | Iterable[Tensor] | None = None) -> StorageTracker:
    """Count the bytes of the storages that are created inside a `with` block.

        with track() as tracker:
            loss = model(batch).loss
            loss.backward()
        print(tracker.peak_bytes, tracker.live_bytes)

    Code under `torch.compile` runs uncompiled inside the block.

    Args:
        include: What exists already and is to be counted too: a module (its parameters, their gradients, and its
            buffers) or tensors. Other storages that exist before the block are not counted, whatever is done to them.

    Returns:
        The context manager, whose `live_bytes` and `peak_bytes` may be read inside the block and after it.

    Raises:
        TypeError: `include` is neither a module nor an iterable of tensors.
    """
    return StorageTracker(_tensors_of(include))


def _tensors_of(include: nn.Module | Iterable[Tensor] | None) -> list[Tensor]:
    if include is None:
        return []
    if isinstance(include, nn.Module):
        gradients = [parameter.grad for parameter in include.parameters() if parameter.grad is not None]
        return [*include.parameters(), *include.buffers(), *gradients]
    tensors = [include] if isinstance(include, Tensor) else list(include)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"track(include=...) got a {type(tensor).__name__} among what it is to count; "
                "pass a module, or an iterable of tensors such as optimizer_state.values()."
            )
    return tensors


def _wraps_tensors(kind: type) -> bool:
    """Whether tensors of this class wrap others and run their own operators on those."""
    return kind is not Tensor and hasattr(kind, "__tensor_flatten__")
