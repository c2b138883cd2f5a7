"""How errors are put: near names, several problems in one error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import PacaError


def unmatched_names(wanted: Iterable[str], names: Iterable[str]) -> list[str]:
    """The wanted names that no module has, as a whole or at its end.

    Args:
        wanted: What `target_modules` lists.
        names: Full names of the modules.

    Returns:
        Those without a match, sorted.
    """
    ends = {".".join(parts[start:]) for parts in (name.split(".") for name in names) for start in range(len(parts))}
    return sorted(set(wanted) - ends)


def near_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Last parts of module names that look like `name`.

    Args:
        name: What was looked for.
        names: Full names of the modules.
        count: How many at most.

    Returns:
        The nearest, best first.
    """
    known = {part.rsplit(".", 1)[-1] for part in names if part}
    return difflib.get_close_matches(name.rsplit(".", 1)[-1], sorted(known), n=count, cutoff=0.5)


def not_found(wanted: Iterable[str], names: Mapping[str, nn.Module]) -> str:
    """A sentence on each name that no module has.

    Args:
        wanted: The names.
        names: The model's modules by name.

    Returns:
        The sentences, one line each.
    """
    lines = []
    for name in wanted:
        near = near_names(name, names)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        lines.append(f"{name!r} matches no module{hint}")
    return "\n".join(lines)


def raise_together(problems: list[str], header: str, most: int = 10) -> None:
    """Raise one error that lists the problems.

    Args:
        problems: One line each.
        header: What could not be done.
        most: How many to list; the rest is counted.

    Raises:
        PacaError: If there is a problem.
    """
    if not problems:
        return
    more = [f"… and {len(problems) - most} more."] if len(problems) > most else []
    raise PacaError("\n".join([header, *(f"  {problem}" for problem in [*problems[:most], *more])]))
