"""The wording of errors: names that come near, several problems in one error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import PacaError


def unmatched_names(wanted: Iterable[str], names: Iterable[str]) -> list[str]:
    """The wanted names that are neither a module's full name nor the end of one, sorted."""
    ends = {".".join(parts[start:]) for parts in (name.split(".") for name in names) for start in range(len(parts))}
    return sorted(set(wanted) - ends)


def near_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Last parts of full names that look like the last part of `name`, the nearest first."""
    known = {part.rsplit(".", 1)[-1] for part in names if part}
    return difflib.get_close_matches(name.rsplit(".", 1)[-1], sorted(known), n=count, cutoff=0.5)


def not_found(wanted: Iterable[str], names: Mapping[str, nn.Module]) -> str:
    """A line on each wanted name, which no module has."""
    lines = []
    for name in wanted:
        near = near_names(name, names)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        lines.append(f"{name!r} matches no module{hint}")
    return "\n".join(lines)


def raise_together(problems: list[str], header: str, most: int = 10) -> None:
    """Raise one PacaError under this header that lists the problems, at most `most`; without problems do nothing."""
    if not problems:
        return
    more = [f"… and {len(problems) - most} more."] if len(problems) > most else []
    raise PacaError("\n".join([header, *(f"  {problem}" for problem in [*problems[:most], *more])]))
