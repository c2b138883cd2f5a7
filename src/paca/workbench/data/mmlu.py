"""MMLU's questions as training rows, written as lm-evaluation-harness writes them when it scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paca.workbench.base.messages import shown, string_problem

LETTERS = "ABCD"
COLUMNS = ("question", *LETTERS, "answer")  # of the authors' CSV files, which have no header
PARTS = ("_dev", "_val", "_test", "_train")


def subject_of(path: Path) -> str:
    """Read a subject off the name of one of the authors' files: `abstract_algebra_dev.csv`; empty for other names."""
    return next((path.stem.removesuffix(part) for part in PARTS if path.stem.endswith(part)), "")


def question_problem(row: Mapping[str, Any]) -> str | None:
    """Say why a row is no multiple-choice question; None for a good one.

    It needs `question`, `answer` (a letter, or a number from 0), and `choices` or `A`, `B`, `C` and `D`.
    """
    choices = choices_of(row)
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) != len(LETTERS):
        return f"'choices' must be a list of {len(LETTERS)} strings, got {shown(choices)}"
    named = {"question": row["question"], **dict(zip(LETTERS, choices, strict=True))}
    found = next(filter(None, (string_problem(name, value) for name, value in named.items())), None)
    if found is None and letter_of(row["answer"]) is None:
        return f"'answer' must be one of {', '.join(LETTERS)}, or a number from 0 to 3, got {shown(row['answer'])}"
    return found


def question_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Write a question as a `prompt`, which ends in `Answer:`, and the `completion`, a space and a letter.

    With `subject`, the prompt opens with the line that a scored prompt opens with.
    """
    lines = [row["question"].strip()]
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices_of(row), strict=True)]
    subject = row.get("subject")
    about = str(subject).replace("_", " ") if subject else ""
    head = f"The following are multiple choice questions (with answers) about {about}.\n\n" if about else ""
    return {"prompt": head + "\n".join([*lines, "Answer:"]), "completion": f" {letter_of(row['answer'])}"}


def choices_of(row: Mapping[str, Any]) -> Any:
    """Take the four choices from `choices`, or from `A`, `B`, `C` and `D`."""
    return row["choices"] if "choices" in row else [row.get(letter) for letter in LETTERS]


def letter_of(answer: Any) -> str | None:
    """Read an answer, a letter or a number from 0, as its letter; None where it is neither."""
    if isinstance(answer, str):
        return answer.strip() if answer.strip() in tuple(LETTERS) else None
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(LETTERS):
        return LETTERS[answer]
    return None
