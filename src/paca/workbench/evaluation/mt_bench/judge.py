"""Verdicts on answers, kept one by one, and the scores that they make."""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from paca.errors import PacaError
from paca.workbench.evaluation.journal import Journal
from paca.workbench.evaluation.mt_bench.endpoint import CallError, Endpoint, ask
from paca.workbench.evaluation.mt_bench.questions import JudgePrompt, Question

BRACKETED = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
LOWEST, HIGHEST = 1, 10
GIVE_UP_AFTER = 3  # failed calls in a row, each with its own retries: the endpoint is down


@dataclass(frozen=True)
class Case:
    """One thing that the judge is asked.

    Args:
        key: `question:turn`.
        system: The system message.
        prompt: The message.
    """

    key: str
    system: str
    prompt: str


def rating(verdict: str) -> float | None:
    """Read a rating from 1 to 10 off a verdict that should hold `[[7]]`, or `[7]`; None where there is none."""
    found = next(filter(None, (pattern.search(verdict) for pattern in BRACKETED)), None)
    value = float(found[1]) if found else None
    return value if value is not None and LOWEST <= value <= HIGHEST else None


def cases(
    questions: Sequence[Question], answers: Mapping[int, list[str | None]], prompts: Mapping[str, JudgePrompt]
) -> Iterator[Case]:
    """Write what the judge is asked, one case per turn: each answer by itself, the second in its conversation.

    An answer is None where the model had no room for one.
    """
    for question in questions:
        first, second = (turn or "" for turn in answers[question.id])
        kind = "single-math-v1" if question.reference else "single-v1"
        references = question.reference or ("", "")
        one = {"question": question.turns[0], "answer": first, "ref_answer_1": references[0]}
        both = {
            "question_1": question.turns[0],
            "question_2": question.turns[1],
            "answer_1": first,
            "answer_2": second,
            "ref_answer_1": references[0],
            "ref_answer_2": references[1],
        }
        for turn, (name, values) in enumerate(((kind, one), (f"{kind}-multi-turn", both)), start=1):
            yield Case(f"{question.id}:{turn}", prompts[name].system, prompts[name].filled(values))


def judge_all(endpoint: Endpoint, waiting: Sequence[Case], journal: Journal, parallel: int = 1) -> None:
    """Ask the judge about every case that has no verdict in the journal yet, `parallel` calls at a time.

    A PacaError if calls failed; the verdicts that came are kept.
    """
    waiting = [case for case in waiting if case.key not in journal]
    if not waiting:
        return
    client, failures, in_a_row = endpoint.client(), [], 0
    with ThreadPoolExecutor(parallel) as pool:
        asked: dict[Future[str], Case] = {
            pool.submit(ask, client, endpoint, case.system, case.prompt): case for case in waiting
        }
        try:
            for done in tqdm(as_completed(asked), total=len(asked), desc="judging"):
                try:
                    verdict = done.result()
                except CallError as error:
                    failures.append(error)
                    in_a_row += 1
                    if in_a_row == GIVE_UP_AFTER:
                        break
                    continue
                in_a_row = 0
                journal.add(asked[done].key, {"rating": rating(verdict), "verdict": verdict})
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failures:
        raise PacaError(
            f"The judge at {endpoint.url} gave no answer to {len(failures)} of {len(waiting)} questions, each asked "
            f"{endpoint.retries + 1} times ({failures[-1]}). The other verdicts are kept: repeat the "
            "command to continue."
        )


def scores(questions: Sequence[Question], journal: Journal) -> dict[str, Any]:
    """Average the ratings.

    Args:
        questions: All questions.
        journal: Holds a verdict for both turns of each.

    Returns:
        By category, and as `average` over all: the mean rating, that of each turn, how many verdicts there were, and
        how many of these had no rating, which count in no mean.
    """
    by_category: dict[str, list[Question]] = {}
    for question in questions:
        by_category.setdefault(question.category, []).append(question)
    found = {category: _mean(members, journal) for category, members in by_category.items()}
    return {"categories": found, "average": _mean(questions, journal)}


def _mean(questions: Sequence[Question], journal: Journal) -> dict[str, Any]:
    turns = [[journal[f"{question.id}:{turn}"]["rating"] for question in questions] for turn in (1, 2)]
    given = [[value for value in turn if value is not None] for turn in turns]
    everything = given[0] + given[1]
    means = [sum(values) / len(values) if values else None for values in (everything, *given)]
    return {
        "score": means[0],
        "turn_1": means[1],
        "turn_2": means[2],
        "verdicts": 2 * len(questions),
        "malformed": 2 * len(questions) - len(everything),
    }
