"""The one exception that a user's mistake raises, and how its messages shorten a list."""

from __future__ import annotations

from collections.abc import Sequence


class PacaError(ValueError):
    """A call, a configuration or a file that cannot work; the message says what to type instead.

    It is a `ValueError`, so that code written for PEFT's other methods, which catches that, goes on working.
    """


def first_few(items: Sequence[object], most: int = 5, separator: str = ", ") -> str:
    """The first few of a list for a message, with an ellipsis in place of the rest."""
    return separator.join([*map(str, items[:most]), *(["…"] if len(items) > most else [])])
