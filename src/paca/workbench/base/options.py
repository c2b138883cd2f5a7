"""Options of a command as fields of a dataclass: each has its name, type, default and explanation in one place.

transformers' `HfArgumentParser` does the same, but importing it takes ten times as long as `paca --help`.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar, get_args

Options = TypeVar("Options")
OVERRIDE = re.compile(r"(\w+(\.\w+)+|seed|output_dir|task)=")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def option(help: str, default: Any = dataclasses.MISSING, *, least: int | None = None, **declared: Any) -> Any:  # noqa: A002 - argparse's word
    """Make a field of a dataclass that is also an option.

    Args:
        help: What `--help` says of it.
        default: Must be given on the command line when omitted.
        least: The smallest number that makes sense.
        **declared: `group`, the heading it stands under; `positional`, whether it goes without its name; `known` and
            `more`, as `first_word` takes them; and what `argparse` takes, such as `metavar`.

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
        elif "nargs" in declared:  # a list: its action, or argparse, reads the words
            pass
        else:
            declared.setdefault("type", next(kind for kind in (int, float, str) if kind in kinds))
        group = spec.metadata.get("group")
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        if "known" in declared:
            first_word(parser, spec.name, **declared)
            continue
        required = spec.default is dataclasses.MISSING
        if not required:
            declared["default"] = spec.default
        if spec.metadata.get("positional"):
            groups[group].add_argument(spec.name, **declared)
            continue
        declared["required"] = required
        groups[group].add_argument(f"--{spec.name.replace('_', '-')}", **declared)


class Several(argparse.Action):
    """An option with one or more words, which spaces, commas or both separate; given again, it takes more.

    Overrides of a recipe that stand behind them are put into `later_overrides`, and in `lists` its name is kept.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the words to those of earlier ones."""
        overrides = [word for word in values if OVERRIDE.match(word)]
        words = [part for word in values if word not in overrides for part in self.parts(word)]
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), *words])
        namespace.lists = [*getattr(namespace, "lists", []), self.dest]
        namespace.later_overrides = [*getattr(namespace, "later_overrides", []), *overrides]

    def parts(self, word: str) -> list[str]:
        """Take a word apart, unless it names a file: that is the verb's first word."""
        return [word] if os.path.isfile(word) else split_words(word)


class SeveralSources(Several):
    """Such an option for names of files: a comma in the name of one that is there separates nothing."""

    def parts(self, word: str) -> list[str]:
        """Take a word apart, unless there is such a file."""
        return [word] if os.path.exists(word) else [part.strip() for part in word.split(",") if part.strip()]


def split_words(text: str) -> list[str]:
    """Split at spaces and commas that stand in no brackets: `paca, lora(r=8, bias=none)` into two words."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if depth <= 0 and (letter == "," or letter.isspace()):
            words.append("")
        else:
            words[-1] += letter
    return [word for word in words if word]


def several(parser: argparse.ArgumentParser, name: str, metavar: str, help: str) -> None:  # noqa: A002 - argparse's word
    """Declare an option that takes several words."""
    parser.add_argument(name, action=Several, nargs="+", default=[], metavar=metavar, help=help)


def first_word(
    parser: argparse.ArgumentParser,
    name: str,
    known: Callable[[str], bool],
    more: str | None = None,
    **declared: Any,
) -> None:
    """Declare the word that a verb takes first, such as RECIPE. `find_first_word` has to be called after parsing.

    Args:
        parser: The verb's.
        name: Where the word is stored.
        known: Tells whether a word can be nothing else.
        more: Where further such words are stored, if the verb takes several.
        **declared: What `argparse` takes.
    """
    # That it is missing is for `find_first_word` to say, which knows where else to look for it.
    parser.add_argument(name, **declared).required = False
    parser.set_defaults(first_word=(name, known, more, declared["metavar"]))


def find_first_word(arguments: argparse.Namespace) -> None:
    """Take a verb's first word out of the options that swallowed it; a usage error if there is none.

    `paca compare --methods paca lora RECIPE` gives all three words to `--methods`, as argparse reads it. If several
    words can be the first one, the last of them is it: it stands where the list ends.
    """
    if "first_word" not in arguments:
        return
    name, known, more, metavar = arguments.first_word
    found = [] if getattr(arguments, name) is None else [getattr(arguments, name)]
    for option in dict.fromkeys(getattr(arguments, "lists", ())):
        words = getattr(arguments, option)
        taken = [word for word in words if known(word)]
        if not more:
            taken = [] if found else taken[-1:]
        setattr(arguments, option, [word for word in words if word not in taken])
        found += taken
    if not found:
        arguments.parser.error(f"the following arguments are required: {metavar}")
    setattr(arguments, name, found[0])
    if more:
        setattr(arguments, more, [*found[1:], *getattr(arguments, more)])


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


def amount(text: str) -> int | float:
    """Read how many values, such as `2_000_000`, or a share, such as `0.01`, as the `type` of an option."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if 0 < number < 1:
            return number
        if math.isfinite(number) and number == int(number) > 0:
            return int(number)
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a whole number of values, such as 2000000, nor a share of the model, such as 0.01"
    )


def size(text: str) -> int:
    """Read a number of bytes, such as `4GB`, `512MiB` or `1000000`, as the `type` of an option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    number = float(match[1]) * unit if match and unit else 0.0
    if not 1 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 4GB or 512MiB")
    return int(number)
