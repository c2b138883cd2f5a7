"""Reads the rating off what a judge wrote: never off its thoughts, its instruction, a footnote or half a verdict."""

import re
from dataclasses import dataclass

LOWEST, HIGHEST = 1, 10

# What a malformed verdict is, or lacks.
CUT = "cut at the token limit"
UNCLOSED = "a thought without an end"
EMPTY = "no text"
UNRATED = "no rating"
OUTSIDE = f"a rating outside {LOWEST} to {HIGHEST}"

_THOUGHT = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning)"
_THOUGHT_BEGINS = re.compile(rf"\s*(?:<{_THOUGHT}>|\[THINK\])", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"</{_THOUGHT}>|\[/THINK\]", re.IGNORECASE)
_EMPHASIS = re.compile(r"[*`]|\\(?=[\[\]])")
# The published prompts end in: for example: "Rating: [[5]]".
_EXAMPLE = re.compile(
    r"(?:\bfor example|\bfor instance|\bsuch as|\be\.g\.)[^\n\[]{0,24}\[\[[^\]\n]*\]\]", re.IGNORECASE
)
_FOOTNOTE = re.compile(r"\[\d+\]")

_NUMBER = r"(\d+(?:\.\d+)?)(?!\d|\.\d)"
_OF_TEN = r"\s*(?:/|out of)\s*10(?!\d|\.\d|/)"
_LABEL = r"\b(?:rating|score|grade|verdict|overall)\b[\"']?(?:\s*\([^)\n]*\))?\s*(?::|=|\bis\b)[\"'\s]*"
_NO_OTHER_SCALE = r"(?!\s*(?:%|(?:/|-|–|out of\b|to\b)\s*\d)|\]?\()"
_RATES = r"\b(?:rat(?:e|es|ed|ing)|scor(?:e|es|ed)|grade|give|deserves?|award|earns?)\b[^.\n]{0,60}?"

_RATING = re.compile(rf"\[\[\s*(?:rating\s*:?\s*)?{_NUMBER}(?:{_OF_TEN})?\s*\]\](?!\()", re.IGNORECASE)
# Where there are no double brackets, the first of these that a verdict holds, and of it the last.
_FALLBACKS = (
    re.compile(rf"{_LABEL}\[?\s*{_NUMBER}(?:{_OF_TEN})?{_NO_OTHER_SCALE}", re.IGNORECASE),
    re.compile(rf"{_RATES}(?<![\d./-]){_NUMBER}{_OF_TEN}", re.IGNORECASE),
    re.compile(rf"(?<![\d./-]){_NUMBER}{_OF_TEN}(?=[\"')\]]*(?:[.,;!]?\s*$|[.,;!]\s))", re.IGNORECASE | re.MULTILINE),
    re.compile(rf"\A\s*{_NUMBER}\.?\s*\Z"),
)
_ALONE = re.compile(rf"^\s*\[\s*{_NUMBER}(?:{_OF_TEN})?\s*\]\s*\Z", re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """What a judge's text comes to.

    Args:
        rating: From 1 to 10; None where there is none.
        malformed: Why there is none, one of this module's constants.
    """

    rating: float | None = None
    malformed: str | None = None


def read_verdict(text: str, cut: bool = False) -> Verdict:
    """Read the rating off a verdict that should end with `[[7]]`.

    Of several ratings the last counts. Single brackets, `Rating: 7` and `7/10` are taken where there are no double
    ones and where they are plainly the rating. `cut` says that the judge was stopped at the token limit: its last
    rating may not be the one that it meant to give.
    """
    if cut:
        return Verdict(malformed=CUT)
    said = _THOUGHT_ENDS.split(text)[-1]
    if not said.strip():
        return Verdict(malformed=EMPTY)
    if _THOUGHT_BEGINS.match(said):
        return Verdict(malformed=UNCLOSED)
    found = _last_rating(_EXAMPLE.sub("", _EMPHASIS.sub("", said)))
    if found is None:
        return Verdict(malformed=UNRATED)
    return Verdict(found) if LOWEST <= found <= HIGHEST else Verdict(malformed=OUTSIDE)


def _last_rating(said: str) -> float | None:
    patterns = [_RATING, *_FALLBACKS]
    if len(_FOOTNOTE.findall(said)) == 1:
        patterns.append(_ALONE)
    found = next(filter(None, (list(pattern.finditer(said)) for pattern in patterns)), None)
    return float(found[-1][1]) if found else None
