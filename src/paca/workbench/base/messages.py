"""Small checks and excerpts of what files from outside hold, for messages of one line."""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_NAME = 4096  # of a path, on most systems
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """Write a value for a message on one line: like `repr`, but short, however large or deeply nested the value is."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def one_line(error: BaseException) -> str:
    """Say what an exception says, on one line of at most 300 characters; its type's name where it says nothing."""
    text = " ".join(str(error).split())
    return (text[:300] + "…" if len(text) > 300 else text) or type(error).__name__


def string_problem(name: str, value: Any) -> str | None:
    """Say why the value of the field `name` is no text that a tokenizer takes; None for good text."""
    if not isinstance(value, str):
        return f"{name!r} must be a string, got {type(value).__name__}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{name!r} holds half of a surrogate pair at character {error.start}, which is no text"
    return None


def problem_list(problems: Sequence[str], most: int = 5, separator: str = "; ") -> str:
    """The first few problems, and how many more there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return separator.join([*problems[:most], *more])


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word nearest to `word`, or nothing when none is near."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def listing(known: Iterable[str], most: int = 12) -> str:
    """Return `; known: a, b, c` when the known words are few enough to read, or nothing."""
    words = sorted(known)
    return f"; known: {', '.join(words)}" if len(words) <= most else ""
