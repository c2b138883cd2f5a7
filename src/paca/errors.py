"""The one exception that a user's mistake raises, and what its messages share."""

from __future__ import annotations

from collections.abc import Sequence

DISTRIBUTION = "paca-peft"  # `paca` on PyPI is another project's


class PacaError(ValueError):
    """A call, a configuration or a file that cannot work; the message says what to type instead.

    It is a `ValueError`, so that code written for PEFT's other methods, which catches that, goes on working.
    """


def first_few(items: Sequence[object], most: int = 5, separator: str = ", ") -> str:
    """The first few of a list for a message, with an ellipsis in place of the rest."""
    return separator.join([*map(str, items[:most]), *(["…"] if len(items) > most else [])])


def to_install(extra: str) -> str:
    """The command that installs the libraries of one of this distribution's extras, such as `train`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
