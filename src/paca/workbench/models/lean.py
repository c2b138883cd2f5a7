"""Lean forwards for a model that is about to be trained."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from paca.workbench.base.progress import say

if TYPE_CHECKING:
    from paca.forwards.apply import LeanReport


def quietly_lean(model: Any, loss: bool = True) -> LeanReport:
    """Give a model its lean forwards, without warning of modules that are left alone."""
    from paca.forwards.apply import lean

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lean(model, loss)


def make_lean(model: Any) -> None:
    """Give a model its lean forwards, and say which; the loss is the trainer's."""
    say(f"note: {quietly_lean(model, loss=False)}")
