"""Lean forwards for a model that is about to be trained."""

import warnings
from typing import Any

from paca.forwards.apply import LeanReport, lean
from paca.workbench.base.progress import say


def quietly_lean(model: Any, loss: bool = True) -> LeanReport:
    """Give a model its lean forwards, without warning of modules that are left alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lean(model, loss)


def make_lean(model: Any) -> None:
    """Give a model its lean forwards, and say which; the loss is the trainer's."""
    say(f"note: {quietly_lean(model, loss=False)}")
