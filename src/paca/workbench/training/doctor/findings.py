"""What an examination says: one line each, by how much it matters."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from paca.errors import PacaError

FINE, NOTE, WARNING, PROBLEM = "fine", "note", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: `fine`; `note` (worth telling before every run); `warning` (something to look at); `problem` (the run
            would be wasted).
        text: What was found, and for the last two what to do.
    """

    level: str
    text: str


fine, note, warning, problem = (partial(Finding, level) for level in (FINE, NOTE, WARNING, PROBLEM))


def refuse_problems(findings: Iterable[Finding]) -> None:
    """Stop where a run would be wasted, by a PacaError with all problems."""
    problems = [finding.text for finding in findings if finding.level == PROBLEM]
    if problems:
        raise PacaError("This run would be wasted: " + " ".join(problems))
