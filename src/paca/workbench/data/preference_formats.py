"""The formats of preference data, told by their fields, and what a row of each becomes.

That is a row with a `prompt` and its answers `chosen` and `rejected`; or one with a `prompt`, a `completion` and the
`label` that says whether it was liked. Prompt and answers are both strings, or both lists of turns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paca.workbench.base.messages import shown, string_problem
from paca.workbench.data import oasst
from paca.workbench.data.formats import Format

ANSWERS = ("chosen", "rejected")
SCORES = ("overall_score", "fine-grained_score")  # UltraFeedback's, of each completion
Row = dict[str, Any]
Turns = list[dict[str, str]]


def _pair_problem(row: Row) -> str | None:
    answers = [row[name] for name in ANSWERS]
    problem = next(filter(None, (_part_problem(name, row[name]) for name in ANSWERS)), None)
    if problem is None and row.get("prompt") is not None:
        problem = _part_problem("prompt", row["prompt"])
    if problem is not None:
        return problem
    if len({isinstance(answer, str) for answer in answers}) > 1:
        return "of 'chosen' and 'rejected' one is a string and the other a list of turns; write both alike"
    if _same(*answers):
        return f"'chosen' and 'rejected' are equal ({shown(answers[0])}), so there is nothing to prefer"
    return _turns_problem(_from_pair(row))


def _part_problem(name: str, value: Any) -> str | None:
    """Say why a value is neither text nor turns; None for a good one."""
    if isinstance(value, str):
        return f"{name!r} is empty" if not value.strip() else string_problem(name, value)
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Sequence) or not turns:
        return f"{name!r} must be a string or a list of {{'role': …, 'content': …}}, got {shown(value)}"
    for position, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            return f"turn {position} of {name!r} must hold strings 'role' and 'content', got {shown(turn)}"
        problem = string_problem("content", turn["content"])
        if problem is not None:
            return f"turn {position} of {name!r}: {problem}"
    return None


def _turns_problem(row: Row) -> str | None:
    """Say why a converted row of turns is no prompt with answers to it."""
    if isinstance(row["prompt"], str):
        return None
    if not row["prompt"]:
        return "there is no 'prompt', and 'chosen' and 'rejected' begin with different turns"
    for name in (*ANSWERS, "completion"):
        roles = [turn["role"] for turn in row.get(name, ())]
        if name in row and roles != ["assistant"]:
            return (
                f"{name!r} must be one turn of the assistant after the prompt, got turns of "
                f"{', '.join(roles) or 'nobody: the other answer goes on from it'}"
            )
    return None


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, str):
        return first.strip() == str(second).strip()
    return [turn["content"].strip() for turn in _turns(first)] == [turn["content"].strip() for turn in _turns(second)]


def _turns(value: Any, role: str = "assistant") -> Turns:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = [value] if isinstance(value, Mapping) else value
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _from_pair(row: Row) -> Row:
    """A pair with its prompt: the row's own, or what both answers begin with."""
    prompt, answers = row.get("prompt"), [row[name] for name in ANSWERS]
    if all(isinstance(answer, str) for answer in answers):
        if prompt is None:
            return _shared_text(*answers)
        if isinstance(prompt, str):
            return {"prompt": prompt, **dict(zip(ANSWERS, answers, strict=True))}
    chosen, rejected = map(_turns, answers)
    shared = next(
        (at for at, turns in enumerate(zip(chosen, rejected, strict=False)) if turns[0] != turns[1]),
        min(len(chosen), len(rejected)),
    )
    # Where the answers repeat the conversation, `prompt` is its last question, or all of it once more.
    before = chosen[:shared] if shared or prompt is None else _turns(prompt, "user")
    return {"prompt": before, "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _shared_text(chosen: str, rejected: str) -> Row:
    from trl import extract_prompt

    row: Row = extract_prompt({"chosen": chosen, "rejected": rejected})
    return row


def _from_question(row: Row) -> Row:
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    prompt = [*system, *_turns(row["question"], "user")]
    return {"prompt": prompt, **{name: _turns(row[name]) for name in ANSWERS}}


def _unpaired_problem(row: Row) -> str | None:
    problem = next(filter(None, (_part_problem(name, row[name]) for name in ("prompt", "completion"))), None)
    if problem is not None:
        return problem
    if not isinstance(row["label"], (bool, int)) or row["label"] not in (0, 1):
        return f"'label' must be true (the completion was liked) or false, got {shown(row['label'])}"
    return _turns_problem(_from_unpaired(row))


def _from_unpaired(row: Row) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    if not (isinstance(prompt, str) and isinstance(completion, str)):
        prompt, completion = _turns(prompt, "user"), _turns(completion)
    return {"prompt": prompt, "completion": completion, "label": bool(row["label"])}


def _completions_problem(row: Row) -> str | None:
    completions = row["completions"]
    if not isinstance(completions, list) or not all(isinstance(one, Mapping) for one in completions):
        return f"'completions' must be a list of {{'response': …, 'overall_score': …}}, got {shown(completions)}"
    problems = (_part_problem("response", one.get("response")) or _score_problem(one) for one in completions)
    return _part_problem("instruction", row["instruction"]) or next(filter(None, problems), None)


def _score_problem(completion: Mapping[str, Any]) -> str | None:
    if isinstance(_score(completion), (int, float)):
        return None
    return f"a completion must have a number as {' or '.join(map(repr, SCORES))}, got {shown(completion)}"


def _score(completion: Mapping[str, Any]) -> Any:
    return next((completion[name] for name in SCORES if completion.get(name) is not None), None)


def _from_completions(row: Row) -> Row | None:
    """The best completion of an instruction and the worst; None where they are equally good."""
    ranked = sorted(row["completions"], key=_score)
    if not ranked or _score(ranked[0]) == _score(ranked[-1]):
        return None
    answers = {"chosen": ranked[-1]["response"], "rejected": ranked[0]["response"]}
    if _same(*answers.values()):
        return None
    return {"prompt": _turns(row["instruction"], "user"), **{name: _turns(text) for name, text in answers.items()}}


# The first whose fields a row has is its format.
_ALL = (
    Format(
        "oasst", ("message_tree_id", "prompt"), "a tree of Open Assistant: the best- and the worst-ranked replies",
        oasst.tree_problem, dict, oasst.ranked_pairs,
    ),
    Format(
        "oasst-messages", ("message_id", "parent_id", "text", "role"),
        "a message of such a tree, as on the Hub; the trees are put together",
        oasst.message_problem, dict, lambda rows: oasst.ranked_pairs(oasst.gather_trees(rows)),
        used=("message_tree_id", "rank", "deleted", "synthetic"),
    ),
    Format(
        "question-pairs", ("question", *ANSWERS), "a question with two answers, and perhaps a `system` message",
        lambda row: next(filter(None, (_part_problem(name, row[name]) for name in ("question", *ANSWERS))), None)
        or _pair_problem({name: row[name] for name in ANSWERS} | {"prompt": "…"}),
        _from_question, used=("system",),
    ),
    Format(
        "pairs", ANSWERS, "two answers, with their `prompt` or beginning with it; strings or turns",
        _pair_problem, _from_pair, used=("prompt",),
    ),
    Format(
        "ultrafeedback", ("instruction", "completions"), "completions with scores: the best and the worst",
        _completions_problem, _from_completions,
    ),
    Format(
        "unpaired", ("prompt", "completion", "label"), "one answer, and whether it was liked",
        _unpaired_problem, _from_unpaired,
    ),
)  # fmt: skip
PREFERENCE_FORMATS = {kind.name: kind for kind in _ALL}
