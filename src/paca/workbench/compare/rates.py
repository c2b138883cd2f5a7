"""Which learning rates a method is run or tried at. Pure functions."""

import math
from collections.abc import Iterable, Mapping, Sequence

from paca.errors import PacaError
from paca.workbench.base.messages import suggestion
from paca.workbench.base.options import split_words
from paca.workbench.compare.choice import Entry

FACTOR = 2.0  # between neighbours of a grid


def read_rates(words: Iterable[str], labels: Sequence[str]) -> dict[str, list[float]]:
    """Read `--rates`, such as `paca=5e-3 lora=1e-3,2e-3`; a PacaError has all problems at once.

    Commas and spaces both separate; a rate without a method is one more of the method before it.
    """
    rates: dict[str, list[float]] = {}
    problems = []
    for word in _by_method(words):
        label, equals, given = word.rpartition("=")
        try:
            found = [float(rate) for rate in given.split(",")]
        except ValueError:
            found = []
        if not equals or not found or not all(math.isfinite(rate) and rate > 0 for rate in found):
            problems.append(f"{word!r} is not METHOD=RATE or METHOD=RATE,RATE,…; write for example lora=1e-3,2e-3")
        elif label not in labels:
            problems.append(f"{label!r} is not compared{suggestion(label, labels)}; it is: {', '.join(labels)}")
        else:
            rates[label] = sorted(set(found))
    numbers = {len(found) for found in rates.values() if len(found) > 1}
    if len(numbers) > 1:
        listed = ", ".join(f"{label} {len(found)}" for label, found in rates.items())
        problems.append(f"all methods are tuned with the same budget, got numbers of rates that differ: {listed}")
    if problems:
        raise PacaError("--rates: " + "\n  ".join(problems))
    return rates


def _by_method(words: Iterable[str]) -> list[str]:
    """One word for each method, its rates joined by commas."""
    found: list[str] = []
    for word in split_words(" ".join(words)):
        if found and "=" not in word:
            found[-1] += f",{word}"
        else:
            found.append(word)
    return found


def grid(centre: float, number: int) -> list[float]:
    """The given number of rates around `centre`, ascending, each twice the one before, rounded to three digits."""
    return [float(f"{centre * FACTOR ** (index - (number - 1) // 2):.3g}") for index in range(number)]


def rates_of(entry: Entry, given: Mapping[str, list[float]], sweep: int, own: float | None) -> list[float]:
    """The rates that a method is tried at: given ones, else a sweep, else a single one, which is used untried.

    `own` is the recipe's rate, if this is the recipe's method.
    """
    if entry.label in given:
        return given[entry.label]
    centre = own or entry.method.rate
    return grid(centre, sweep) if sweep else [centre]
