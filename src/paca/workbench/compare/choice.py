"""Reads `--methods`: names of methods with or without arguments, such as `paca,lora(r=8),oft(oft_block_size=32)`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paca.errors import PacaError
from paca.workbench.base import yaml
from paca.workbench.base.messages import suggestion
from paca.workbench.base.options import split_words
from paca.workbench.methods.catalogue import FLOORS, METHODS, AdapterSetting, Method
from paca.workbench.methods.registry import known_methods, method_problems

DEFAULT = "paca,lora,miss,lora-fa"
_WORD = re.compile(r"([^()]+)(?:\((.*)\))?", re.DOTALL)
_COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^\[\]{}]*[\]}])")


@dataclass(frozen=True)
class Entry:
    """A method that is compared, with what it is given.

    Args:
        label: What tables call it: the method's name, with its arguments if it was given some.
        method: The method.
        setting: Rank, target modules, arguments.
    """

    label: str
    method: Method
    setting: AdapterSetting = field(default_factory=AdapterSetting)

    @property
    def rank(self) -> int | None:
        """The rank that the adapter really has, its arguments considered; None where it has none, or a budget."""
        try:
            config = self.method.config(self.setting)
        except (TypeError, ValueError):  # it fails when it is measured, and says why then
            return None
        if getattr(config, "budget", None) is not None:
            return None
        for name in ("init_r", "r"):  # AdaLoRA begins with the first, and does not look at the other
            if isinstance(getattr(config, name, None), int):
                return getattr(config, name) or None
        return None

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on, for JSON."""
        return {
            "method": self.label,
            "rank": self.rank,
            "targets": repr(self.setting.targets),
            **({} if self.setting.blocks is None else {"blocks": repr(self.setting.blocks)}),
            "arguments": {key: repr(value) for key, value in self.setting.arguments.items()},
        }


def choose_methods(text: str) -> list[Entry]:
    """Find the methods that a user names; the frozen floors, plain and lean, are always among them, first.

    Commas or spaces separate names; each may have arguments of the method's PEFT config in parentheses. A PacaError
    names all unknown methods, with near names, and all unknown arguments at once.
    """
    problems: list[str] = []
    chosen = {name: Entry(name, METHODS[name]) for name in FLOORS}
    for name, given in _split(text):
        found = _find(name, problems)
        arguments = _arguments(name, given, problems)
        if found is None or arguments is None:
            continue
        problems += _argument_problems(name, found, arguments)
        label = name if not arguments else f"{name}({given.strip()})"
        chosen[label] = Entry(label, found, AdapterSetting(arguments=arguments))
    if problems:
        raise PacaError("--methods: " + "\n  ".join(problems))
    if len(chosen) == len(FLOORS):
        raise PacaError(f"--methods {text!r} names nothing to compare; for example --methods {DEFAULT}.")
    return list(chosen.values())


def _split(text: str) -> list[tuple[str, str]]:
    found = []
    for word in split_words(text):
        match = _WORD.fullmatch(word)
        if match is None:
            raise PacaError(
                f"--methods: can't read {word!r}; write names separated by commas or spaces, arguments in "
                "parentheses: paca,lora(r=8,use_rslora=true)."
            )
        found.append((match[1], match[2] or ""))
    return found


def _find(name: str, problems: list[str]) -> Method | None:
    """A method of ours, or PEFT's of that name; PEFT's config classes may be named as well."""
    if name in METHODS:
        return METHODS[name]
    known = known_methods()
    by_class = {cls.__name__.lower(): kind for kind, cls in known.items()}
    kind = name.lower() if name.lower() in known else by_class.get(name.lower())
    if kind is None:
        words = [*METHODS, *known, *(cls.__name__ for cls in known.values())]
        hint = suggestion(name, words) or f"; known: {', '.join(dict.fromkeys([*METHODS, *sorted(known)]))}"
        problems.append(f"{name!r}: neither paca nor PEFT has such a method{hint}")
        return None
    return Method(name, f"PEFT's {known[kind].__name__.removesuffix('Config')}", kind)


def _arguments(name: str, given: str, problems: list[str]) -> dict[str, Any] | None:
    arguments: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in _COMMA_OUTSIDE_BRACKETS.split(given))):
        key, equals, value = pair.partition("=")
        try:
            arguments[key.strip()] = yaml.parse(value)
        except ValueError:
            equals = ""
        if not equals:
            problems.append(f"{name}({given}): {pair!r} is not key=value; write for example r=8")
            return None
    return arguments


def _argument_problems(name: str, method: Method, arguments: Mapping[str, Any]) -> list[str]:
    if not arguments:
        return []
    if method.peft is None:
        return [f"{name} takes no arguments, got {', '.join(arguments)}"]
    found = method_problems(method.peft, arguments)
    return [f"{name}: {problem.replace('method.', '')}" for problem in found]
