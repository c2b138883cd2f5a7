"""Connections that the user gives, per layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key

from ...errors import PacaError, first_few

Given = Mapping[str, Sequence[int]]


def read_given(given: Given | str) -> Given:
    """The user's connections by name or regular expression, from the JSON file if one is named."""
    if not isinstance(given, str):
        return given
    try:
        content = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PacaError(f"selection_indices={given!r} cannot be read: {error}") from error
    problem = given_problem(content)
    if problem:
        raise PacaError(f"selection_indices={given!r}: {problem}")
    return content


def given_problem(given: Any) -> str | None:
    """What is wrong with the user's connections whatever the model is: a sentence, or None."""
    if not isinstance(given, Mapping) or not given:
        return "it is no mapping of layer names to lists of indices; pass {'q_proj': [0, 5, 7], …}."
    for name, indices in given.items():
        listed = isinstance(indices, Sequence) and not isinstance(indices, str)
        if not listed or not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
            return f"{name!r} is given {indices!r}, which is no list of whole numbers; pass [0, 5, 7], for example."
    return None


def given_for(given: Given, name: str) -> Sequence[int] | None:
    """The connections given for a layer, by a key that matches as those of `rank_pattern` do; None without one."""
    return given.get(get_pattern_key(list(given), name))


def indices_problem(indices: Sequence[int] | None, name: str, connections: int, rank: int) -> str | None:
    """What is wrong with the connections given for one layer, which has this many: a sentence, or None."""
    if indices is None:
        return f"selection_indices has no entry for {name}; add one, or leave the layer out of target_modules."
    outside = sorted({index for index in indices if not 0 <= index < connections})
    if outside:
        return (
            f"selection_indices of {name} name {first_few(outside)}, but the layer has the connections 0 to "
            f"{connections - 1}."
        )
    twice = sorted({index for index in indices if list(indices).count(index) > 1})
    if twice:
        return f"selection_indices of {name} name {first_few(twice)} more than once; name each connection once."
    if len(indices) != rank:
        return (
            f"selection_indices of {name} has {len(indices)} connections, but r={rank}: pass r={len(indices)}, or "
            f"rank_pattern={{{name!r}: {len(indices)}}}."
        )
    return None
