"""Reads MT-Bench's files: questions, reference answers, and the prompts that a judge is given."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import problem_list, shown, string_problem
from paca.workbench.data.documents import near_files
from paca.workbench.data.files import read_json_rows
from paca.workbench.data.formats import BadRow

QUESTIONS, PROMPTS, REFERENCES = "question.jsonl", "judge_prompts.jsonl", "reference_answer"
REFERENCED = ("coding", "math", "reasoning")  # the published scores rate these against a reference answer
PLACEHOLDER = re.compile(r"\{(\w+)\}")

# What each of the four prompts must have a place for: by turn, and whether there is a reference answer.
PLACES = {
    "single-v1": {"question", "answer"},
    "single-math-v1": {"question", "answer", "ref_answer_1"},
    "single-v1-multi-turn": {"question_1", "answer_1", "question_2", "answer_2"},
    "single-math-v1-multi-turn": {
        "question_1", "answer_1", "ref_answer_1", "question_2", "answer_2", "ref_answer_2",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question of two turns.

    Args:
        id: Its number.
        category: Such as `writing`.
        turns: What is asked, and what is asked next.
        reference: The reference answers to both, where there are any.
    """

    id: int
    category: str
    turns: tuple[str, str]
    reference: tuple[str, str] | None = None


@dataclass(frozen=True)
class JudgePrompt:
    """How a judge is asked.

    Args:
        system: The system message.
        template: The message, with places such as `{answer}`.
    """

    system: str
    template: str

    def filled(self, values: Mapping[str, str]) -> str:
        """Put values in their places, each once: what an answer holds in braces stays as it is."""
        return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), self.template)


def read_questions(folder: Path, limit: int | None = None) -> list[Question]:
    """Read MT-Bench's questions with their reference answers, at most `limit` of each category.

    The folder holds `question.jsonl` and `reference_answer/*.jsonl`. A PacaError has the first few problems.
    """
    rows = _rows(folder / QUESTIONS, _question_problem)
    references = {
        row["question_id"]: tuple(row["choices"][0]["turns"][:2])
        for path in sorted((folder / REFERENCES).glob("*.jsonl"))[:1]
        for row in _rows(path, _reference_problem)
    }
    numbers = [row["question_id"] for row in rows]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise PacaError(f"{folder / QUESTIONS} holds question {twice[0]} twice.")
    taken: dict[str, int] = {}
    questions = []
    for row in rows:
        taken[row["category"]] = taken.get(row["category"], 0) + 1
        if limit is None or taken[row["category"]] <= limit:
            number, category, turns = row["question_id"], row["category"], tuple(row["turns"])
            questions.append(Question(number, category, turns, references.get(number)))
    missing = [question.id for question in questions if question.category in REFERENCED and not question.reference]
    if missing:
        raise PacaError(
            f"Question {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''} of {folder / QUESTIONS} "
            f"({', '.join(REFERENCED)}) have no reference answer in {folder / REFERENCES}."
        )
    return questions


def read_prompts(path: Path) -> dict[str, JudgePrompt]:
    """Read the four prompts of `PLACES` by name from `judge_prompts.jsonl`, as published, or a file like it.

    A PacaError has the first few problems.
    """
    rows = {row["name"]: row for row in _rows(path, _prompt_problem)}
    missing = [name for name in PLACES if name not in rows]
    if missing:
        raise PacaError(f"{path} holds no prompt named {', '.join(missing)}.")
    return {name: JudgePrompt(rows[name]["system_prompt"], rows[name]["prompt_template"]) for name in PLACES}


def _rows(path: Path, problem: Callable[[Mapping[str, Any]], str | None]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise PacaError(f"There is no file {str(path)!r}{near_files(path)}.")
    rows, problems = [], []
    for place, row in read_json_rows(path):
        if isinstance(row, BadRow):
            found: str | None = row.problem
        elif not isinstance(row, dict):
            found = f"expected an object, got {shown(row)}"
        else:
            found = problem(row)
        if found:
            problems.append(f"{place}: {found}")
        else:
            rows.append(row)
    if problems:
        raise PacaError(problem_list(problems))
    return rows


def _question_problem(row: Mapping[str, Any]) -> str | None:
    if not isinstance(row.get("question_id"), int):
        return f"'question_id' must be a whole number, got {shown(row.get('question_id'))}"
    return string_problem("category", row.get("category")) or _turns_problem(row.get("turns"))


def _turns_problem(turns: Any) -> str | None:
    if not isinstance(turns, list) or len(turns) != 2:
        return f"'turns' must be a list of two texts, got {shown(turns)}"
    return string_problem("turns", turns[0]) or string_problem("turns", turns[1])


def _reference_problem(row: Mapping[str, Any]) -> str | None:
    if not isinstance(row.get("question_id"), int):
        return f"'question_id' must be a whole number, got {shown(row.get('question_id'))}"
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return f"'choices' must be a list of objects with 'turns', got {shown(choices)}"
    return _turns_problem(choices[0].get("turns"))


def _prompt_problem(row: Mapping[str, Any]) -> str | None:
    problem = string_problem("name", row.get("name"))
    if problem or row["name"] not in PLACES:
        return problem
    problem = string_problem("system_prompt", row.get("system_prompt"))
    problem = problem or string_problem("prompt_template", row.get("prompt_template"))
    if problem:
        return problem
    lacking = PLACES[row["name"]] - set(PLACEHOLDER.findall(row["prompt_template"]))
    if lacking:
        return f"the prompt {row['name']} has no place for {', '.join(f'{{{name}}}' for name in sorted(lacking))}"
    return None
