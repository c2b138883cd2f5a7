"""When columns are written again: after optimizer steps, and eagerly for compiled code."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


class Keeper(Protocol):
    """What a step has to know of a keeper of columns."""

    eager: bool
    pinned: bool
    shown: Any

    def invalidate(self) -> None:
        """Have what is shown written anew before it is next used."""

    def refresh(self) -> None:
        """Write what is shown now."""


# Which keeper shows a delta, by the delta's id: how a step finds the columns that it has made stale.
_KEEPERS: weakref.WeakValueDictionary[int, Keeper] = weakref.WeakValueDictionary()


def keepers() -> list[Keeper]:
    """The keepers that show a delta, or did, and still live."""
    return list(_KEEPERS.values())


# Compiled code cannot check its columns before it runs. Once anything is compiled, columns are therefore written at
# once when something changes, instead of in the next forward pass.
_eager = False


def writes_eagerly() -> bool:
    """Whether columns are written as soon as something changes, instead of before the next forward pass."""
    return _eager


def write_eagerly() -> None:
    """From now on, write columns as soon as something changes: compiled code cannot look before it runs."""
    global _eager  # noqa: PLW0603 - one switch for the process: compiled code is shared by layers and models
    _eager = True


def stepped(parameters: Iterable[Tensor]) -> None:
    """Tell that an optimizer has changed these parameters.

    The columns that they show are stale now. The next forward pass writes them anew, or whoever walks the model's
    parameters before it takes them out. They are written at once if compiled code will read them.

    Args:
        parameters: Any parameters; those that are no adapter's are passed over.
    """
    for parameter in parameters:
        columns = _KEEPERS.get(id(parameter))
        if columns is None:
            continue
        columns.invalidate()
        shows = columns.shown is not None and any(term.delta is parameter for term in columns.shown.terms)
        if (_eager or columns.eager) and shows and not columns.pinned:
            columns.refresh()


@torch.compiler.disable
def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    # Version counters are not enough: fused steps and bitsandbytes' do not bump them. This hook is called after the
    # step of every torch.optim.Optimizer, theirs included.
    stepped(parameter for group in optimizer.param_groups for parameter in group["params"])
    _invalidate_copied()


def is_copied(delta: Tensor) -> bool:
    """Whether ZeRO-1 or ZeRO-2 steps a copy of an update in its place.

    Args:
        delta: The update.

    Returns:
        Whether DeepSpeed has put its mark on it.
    """
    return hasattr(delta, "_hp_mapping")


def _invalidate_copied() -> None:
    # DeepSpeed's ZeRO-1 and ZeRO-2 step flat copies, which are written back into the updates afterwards: the step
    # names other tensors than the updates, and their version counters tell nothing. ZeRO-3 takes the weights apart;
    # columns don't live in them then, and nothing has to be told.
    if "deepspeed" not in sys.modules:
        return
    for keeper in keepers():
        if keeper.shown is not None and any(is_copied(term.delta) for term in keeper.shown.terms):
            keeper.invalidate()


register_optimizer_step_post_hook(_after_step)
