"""The commands that the pages print, taken from their blocks of code."""

import re
from dataclasses import dataclass

from tests.paths import ROOT

# Pages that somebody reads who has just installed it: README, the quick start, and one for each verb.
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/finetune.md",
    "docs/doctor.md",
    "docs/data.md",
    "docs/preference.md",
    "docs/planning.md",
    "docs/selection.md",
    "docs/compare.md",
    "docs/eval.md",
    "docs/chat.md",
    "docs/export.md",
    "docs/exec.md",
    "docs/recipes.md",
    "docs/vision.md",
)
PROGRAMS = ("paca", "pip", "make", "python", "transformers", "printf", "echo", "export", "accelerate", "torchrun")


@dataclass(frozen=True)
class Command:
    """A command as it is printed.

    Args:
        page: Where.
        line: The number of its first line there.
        text: What is typed, continued lines joined, without the comment behind it.
    """

    page: str
    line: int
    text: str


def commands(page):
    """Yield the commands of a page: of its fenced blocks and of those that are indented by four spaces."""
    lines = iter(enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1))
    fenced, language = False, ""
    for number, line in lines:
        if line.startswith("```"):
            fenced, language = not fenced, line.strip("` ")
            continue
        if not (fenced and language in ("", "console", "bash")) and not line.startswith("    "):
            continue
        text = line.strip().removeprefix("$ ")
        prompted = line.strip().startswith("$ ")
        if not (prompted or (language != "console" and text.split(" ")[0] in PROGRAMS)):
            continue
        while text.endswith("\\"):
            text = f"{text[:-1].rstrip()} {next(lines)[1].strip()}"
        yield Command(page, number, re.sub(r"\s{2,}#.*", "", text).strip())
