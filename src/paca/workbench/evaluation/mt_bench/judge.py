"""Verdicts on answers, kept one by one, and the scores that they make."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from paca.errors import PacaError
from paca.workbench.evaluation.journal import Journal
from paca.workbench.evaluation.mt_bench.calls import Caller, CallError, RefusedError, Reply
from paca.workbench.evaluation.mt_bench.endpoint import Endpoint
from paca.workbench.evaluation.mt_bench.questions import JudgePrompt, Question
from paca.workbench.evaluation.mt_bench.verdict import read_verdict

GIVE_UP_AFTER = 3  # failed calls in a row, each with its own retries: the endpoint is down
FIRST_CALLS = 4  # two questions: where all of them are refused, it is not for what they hold


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


@dataclass(frozen=True)
class Judged:
    """What came of asking.

    Args:
        refused: Why the judge refused to rate an answer, by key of its case.
        asked_with: How the judge wants to be asked, where that is not the usual way.
    """

    refused: Mapping[str, str]
    asked_with: Sequence[str] = ()


def judge_all(endpoint: Endpoint, every: Sequence[Case], journal: Journal, parallel: int = 1) -> Judged:
    """Ask the judge about each case without a verdict in the journal, or with one cut at fewer tokens than now.

    `parallel` calls are made at a time. A call that is refused for what it holds stays without a verdict, and the
    others go on. A PacaError if the first calls are all refused, or calls failed; the verdicts that came are kept.
    """
    waiting = [case for case in every if _waits(case, journal, endpoint)]
    if not waiting:
        return Judged({})
    caller, answered_before = Caller(endpoint), len(journal) > 0
    refused: dict[str, str] = {}
    failures: list[CallError] = []
    answered = in_a_row = 0
    with ThreadPoolExecutor(parallel) as pool:
        asked: dict[Future[Reply], Case] = {
            pool.submit(caller.ask, case.system, case.prompt): case for case in waiting
        }
        try:
            for done in tqdm(as_completed(asked), total=len(asked), desc="judging"):
                key = asked[done].key
                try:
                    reply = done.result()
                except RefusedError as error:
                    refused[key], in_a_row = str(error), 0
                    if not (answered or answered_before) and len(refused) == min(FIRST_CALLS, len(waiting)):
                        raise _no_judge(endpoint, refused) from error
                except CallError as error:
                    failures.append(error)
                    in_a_row += 1
                    if in_a_row == GIVE_UP_AFTER:
                        break
                else:
                    answered, in_a_row = answered + 1, 0
                    journal.add(key, _kept(reply, endpoint))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failures:
        raise PacaError(
            f"The judge at {endpoint.url} gave no answer to {len(failures)} of {len(waiting)} questions, each asked "
            f"{endpoint.retries + 1} times ({failures[-1]}). The other verdicts are kept: repeat the "
            "command to continue."
        )
    if not answered and len(refused) > FIRST_CALLS:  # it answered before, and now refuses everything
        raise _no_judge(endpoint, refused)
    return Judged(refused, sorted(caller.adaptations))


def _waits(case: Case, journal: Journal, endpoint: Endpoint) -> bool:
    return case.key not in journal or (journal[case.key].get("cut_at") or endpoint.max_tokens) < endpoint.max_tokens


def _kept(reply: Reply, endpoint: Endpoint) -> dict[str, Any]:
    found = read_verdict(reply.text, reply.cut)
    cut = {"cut_at": endpoint.max_tokens} if reply.cut else {}
    return {"rating": found.rating, "malformed": found.malformed, **cut, "verdict": reply.text}


def _no_judge(endpoint: Endpoint, refused: Mapping[str, str]) -> PacaError:
    return PacaError(
        f"The judge at {endpoint.url} refused all of the first {len(refused)} calls: {next(iter(refused.values()))}. "
        f"Is {endpoint.model!r} its --judge-model, does the address end in /v1, and may the key in "
        f"{endpoint.key_variable} use it?"
    )


def scores(questions: Sequence[Question], journal: Journal) -> dict[str, Any]:
    """Average the ratings.

    Args:
        questions: All questions.
        journal: Holds the verdicts on both turns of each, but for those that the judge refused to give.

    Returns:
        By category, and as `average` over all: the mean rating, that of each turn, how many verdicts there are, how
        many of these have no rating, and how many were refused, which both count in no mean. As `malformed` how many
        have none for which reason; as `cut_at` the lowest token limit at which one was cut, or None.
    """
    by_category: dict[str, list[Question]] = {}
    for question in questions:
        by_category.setdefault(question.category, []).append(question)
    reasons = (entry["malformed"] for entry in journal.values())
    return {
        "categories": {category: _mean(members, journal) for category, members in by_category.items()},
        "average": _mean(questions, journal),
        "malformed": dict(sorted(Counter(filter(None, reasons)).items())),
        "cut_at": min((entry["cut_at"] for entry in journal.values() if "cut_at" in entry), default=None),
    }


def _mean(questions: Sequence[Question], journal: Journal) -> dict[str, Any]:
    turns = [[journal.get(f"{question.id}:{turn}") for question in questions] for turn in (1, 2)]
    verdicts = [entry for turn in turns for entry in turn if entry is not None]
    given = [[entry["rating"] for entry in turn if entry and entry["rating"] is not None] for turn in turns]
    everything = given[0] + given[1]
    means = [sum(values) / len(values) if values else None for values in (everything, *given)]
    return {
        "score": means[0],
        "turn_1": means[1],
        "turn_2": means[2],
        "verdicts": len(verdicts),
        "malformed": len(verdicts) - len(everything),
        "refused": 2 * len(questions) - len(verdicts),
    }
