"""Checks a mapping against a dataclass: unknown keys with the near one, values of the wrong type. Pure functions."""

import dataclasses
import math
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from paca.workbench.base.messages import one_line, shown
from paca.workbench.base.near_keys import near_key


def unknown_keys(where: str, given: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Describe every key of the mapping named `where` (empty for the top level) that is not known."""
    known = set(known)
    return [
        f"{dotted(where, key)} = {shown(given[key])}: there is no such key{near_key(where, str(key), known)}"
        for key in given
        if key not in known
    ]


def wrong_types(where: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> list[str]:
    """Describe every value that does not fit its annotation; keys without one are not checked."""
    return [
        f"{dotted(where, key)} = {shown(value)}: expected {describe(hints[key])}, got {type(value).__name__}"
        for key, value in given.items()
        if key in hints and not fits(value, hints[key])
    ]


def class_problems(
    where: str,
    given: Mapping[str, Any],
    cls: Any,
    refused: Mapping[str, str],
    make: Callable[[], Any],
    further: Iterable[str] = (),
) -> list[str]:
    """Say what is wrong with keys that become a dataclass of another library, one message per problem.

    `refused` says what to do instead of setting some of its fields. `make` makes the instance: its own checks are
    heard only where nothing else is wrong.
    """
    problems = [
        f"{where}.{key} = {shown(given[key])}: not to be set here; {instead}"
        for key, instead in refused.items()
        if key in given
    ]
    kept = {key: value for key, value in given.items() if key not in refused}
    problems += unknown_keys(where, kept, {spec.name for spec in dataclasses.fields(cls)} - set(refused))
    problems += [*wrong_types(where, kept, get_type_hints(cls)), *further]
    if not problems:
        try:
            make()
        except (ValueError, TypeError, ImportError) as error:
            problems.append(f"{where}: {one_line(error)}")
    return problems


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value read from YAML can be meant by an annotation; False only where it certainly is not.

    An annotation that YAML cannot express (a class, a callable) fits everything.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if hint is bool or hint is str:
        return isinstance(value, hint)
    if hint in (int, float):
        accepted = (int,) if hint is int else (int, float)
        return isinstance(value, accepted) and not isinstance(value, bool) and math.isfinite(value)
    if origin in (list, Sequence) or hint is list:
        items = get_args(hint)[:1]
        return isinstance(value, list) and all(fits(item, hint) for item in value for hint in items)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in [option.value for option in hint]
    return True


def describe(hint: Any) -> str:
    """Write a resolved annotation as a user would say it, for instance `int or None`."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in get_args(hint))
    if origin is Literal:
        return " or ".join(repr(option) for option in get_args(hint))
    if origin is not None and get_args(hint):
        return f"{origin.__name__} of {' and '.join(describe(item) for item in get_args(hint))}"
    if hint is type(None):
        return "None"
    return getattr(hint, "__name__", str(hint))


def dotted(where: str, key: str) -> str:
    """Join the dotted name of a mapping, empty for the top level, and a key: `training.max_steps`."""
    return f"{where}.{key}" if where else str(key)


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List what differs between two recipes' `to_dict()`, one line per dotted key with both values.

    `output_dir` is not compared, since a run's folder may be moved.
    """
    before, after = _flatten(old), _flatten(new)
    keys = [key for key in {**before, **after} if key != "output_dir"]
    return [
        f"{key} was {before.get(key, 'not set')!r}, now {after.get(key, 'not set')!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _flatten(content: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = dotted(where, os.fspath(key))
        flat.update(_flatten(value, name) if isinstance(value, dict) else {name: value})
    return flat
