"""Options of a command as fields of a dataclass: each has its name, type, default and explanation in one place.

transformers' `HfArgumentParser` does the same, but importing it takes ten times as long as `paca --help`.
"""

import argparse
import dataclasses
import math
import re
from typing import Any, TypeVar, get_args

Options = TypeVar("Options")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def option(help: str, default: Any = dataclasses.MISSING, *, least: int | None = None, **declared: Any) -> Any:  # noqa: A002 - argparse's word
    """Make a field of a dataclass that is also an option.

    Args:
        help: What `--help` says of it.
        default: Must be given on the command line when omitted.
        least: The smallest number that makes sense.
        **declared: `group`, the heading it stands under; `positional`, whether it goes without its name; and what
            `argparse` takes, such as `metavar`.

    Returns:
        The field.
    """
    return dataclasses.field(default=default, metadata={"help": help, "least": least, **declared})


def add_options(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Declare the fields of a dataclass, made by `option`, as options: `judge_url` as `--judge-url`."""
    groups: dict[str | None, Any] = {None: parser}
    for spec in dataclasses.fields(cls):
        declared = {key: value for key, value in spec.metadata.items() if key not in ("least", "group", "positional")}
        kinds = get_args(spec.type) or (spec.type,)
        if bool in kinds:
            declared["action"] = "store_true"
        else:
            declared.setdefault("type", next(kind for kind in (int, float, str) if kind in kinds))
        group = spec.metadata.get("group")
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        if spec.metadata.get("positional"):
            groups[group].add_argument(spec.name, **declared)
            continue
        required = spec.default is dataclasses.MISSING
        declared.update({"required": True} if required else {"default": spec.default})
        groups[group].add_argument(f"--{spec.name.replace('_', '-')}", **declared)


def read_options(arguments: argparse.Namespace, cls: type[Options]) -> Options:
    """Make the dataclass from what was typed."""
    return cls(**{spec.name: getattr(arguments, spec.name) for spec in dataclasses.fields(cls)})  # type: ignore[arg-type]


def too_small(options: Any) -> list[str]:
    """Say which numbers are smaller than their `least`, one message each."""
    given = [(spec.name, getattr(options, spec.name), spec.metadata["least"]) for spec in dataclasses.fields(options)]
    return [
        f"{name.replace('_', '-')} = {value}: expected at least {least}"
        for name, value, least in given
        if least is not None and value is not None and value < least
    ]


def positive(text: str) -> int:
    """Read a whole number above zero, as the `type` of an option."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def size(text: str) -> int:
    """Read a number of bytes, such as `4GB`, `512MiB` or `1000000`, as the `type` of an option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    number = float(match[1]) * unit if match and unit else 0.0
    if not 1 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 4GB or 512MiB")
    return int(number)
