"""The formats that training data comes in, told by their fields, and what a row of each becomes.

That is a row with `text`, one with `messages`, or one with a `prompt` and the `completion` that is learned.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import problem_list, shown, string_problem, suggestion
from paca.workbench.data import mmlu, oasst

Row = dict[str, Any]
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip


@dataclass(frozen=True)
class BadRow:
    """Stands for a row that could not even be parsed.

    Args:
        problem: What is wrong.
    """

    problem: str


@dataclass(frozen=True)
class Format:
    """How rows of one kind are told and read.

    Args:
        name: What a recipe's `data.format` may say.
        fields: Every row has them.
        description: What a row holds, in one line.
        problem: Says why a row that has the fields can't be trained on, or None.
        convert: Makes the row that is encoded; None where the row has nothing to learn.
        gather: Puts rows together that make one only together.
    """

    name: str
    fields: tuple[str, ...]
    description: str
    problem: Callable[[Row], str | None]
    convert: Callable[[Row], Row | None]
    gather: Callable[[list[Row]], list[Row]] | None = None


def messages_problem(messages: Any) -> str | None:
    """Say why a value is no list of `{'role': …, 'content': …}` that can be learned from; None for a good one."""
    if not isinstance(messages, list) or not messages:
        return f"'messages' must be a list of {{'role': …, 'content': …}}, got {shown(messages)}"
    for position, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            return f"message {position} must hold strings 'role' and 'content', got {shown(message)}"
        problem = string_problem("content", message["content"])
        if problem is not None:
            return f"message {position}: {problem}"
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        return f"no message has the role 'assistant', so there is nothing to learn; roles: {', '.join(roles)}"
    if roles[0] == "assistant":
        return "the first message has the role 'assistant', so it answers nothing; start with 'user' or 'system'"
    return None


def _strings_problem(row: Row, names: Iterable[str]) -> str | None:
    return next(filter(None, (string_problem(name, row[name]) for name in names if name in row)), None)


def _alpaca_problem(row: Row) -> str | None:
    given = {key: value for key, value in row.items() if key != "input" or value is not None}
    return _strings_problem(given, ("instruction", "input", "output"))


def _from_alpaca(row: Row) -> Row:
    question = "\n\n".join(filter(None, ((row.get(key) or "").strip() for key in ("instruction", "input"))))
    answer = row["output"].strip()
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _sharegpt_problem(row: Row) -> str | None:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return f"'conversations' must be a list of {{'from': …, 'value': …}}, got {shown(turns)}"
    for position, turn in enumerate(turns, start=1):
        speaker = turn.get("from", turn.get("role"))
        if speaker not in SHAREGPT_ROLES:
            return f"turn {position} is from {speaker!r:.60}, expected one of {', '.join(SHAREGPT_ROLES)}"
    return messages_problem(_from_sharegpt(row)["messages"])


def _from_sharegpt(row: Row) -> Row:
    return {
        "messages": [
            {
                "role": SHAREGPT_ROLES[turn.get("from", turn.get("role"))],
                "content": turn.get("value", turn.get("content")),
            }
            for turn in row["conversations"]
        ]
    }


# The first whose fields a row has is its format.
_ALL = (
    Format(
        "oasst", ("message_tree_id", "prompt"), "a tree of Open Assistant with nested replies: its best-ranked path",
        oasst.tree_problem, oasst.best_path,
    ),
    Format(
        "oasst-messages", ("message_id", "parent_id", "text", "role"),
        "a message of such a tree, as on the Hub; the trees are put together",
        oasst.message_problem, oasst.best_path, oasst.gather_trees,
    ),
    Format(
        "prompt-completion", ("prompt", "completion"), "two strings, of which the second is learned",
        lambda row: _strings_problem(row, ("prompt", "completion")),
        lambda row: {key: row[key] for key in ("prompt", "completion")},
    ),
    Format(
        "alpaca", ("instruction", "output"), "a question, its `input` if there is one, and the answer",
        _alpaca_problem, _from_alpaca,
    ),
    Format(
        "sharegpt", ("conversations",), "a list of turns with `from` (human, gpt, system) and `value`",
        _sharegpt_problem, _from_sharegpt,
    ),
    Format(
        "messages", ("messages",), "a list of turns with `role` and `content`",
        lambda row: messages_problem(row["messages"]), lambda row: {"messages": row["messages"]},
    ),
    Format(
        "mmlu", ("question", "choices", "answer"), "a multiple-choice question as on the Hub: the letter is learned",
        mmlu.question_problem, mmlu.question_row,
    ),
    Format(
        "mmlu-letters", mmlu.COLUMNS, "the same with a column for each choice, as in the authors' CSV files",
        mmlu.question_problem, mmlu.question_row,
    ),
    Format(
        "text", ("text",), "plain text, all of it learned",
        lambda row: string_problem("text", row["text"]), lambda row: {"text": row["text"]},
    ),
)  # fmt: skip
FORMATS = {kind.name: kind for kind in _ALL}
Formats = Mapping[str, Format]


def recognised(row: Mapping[str, Any], formats: Formats = FORMATS) -> Format | None:
    """Tell a row's format by its fields; None where it has the fields of none."""
    return next((kind for kind in formats.values() if all(name in row for name in kind.fields)), None)


def convert_rows(rows: Iterable[tuple[str, Any]], name: str | None = None, formats: Formats = FORMATS) -> list[Row]:
    """Read rows of one source, all in the format `name`, by default that of the first row.

    Each comes with its place, such as `file:3`. The rows returned are what their format makes of them; a PacaError has
    the first few that can't be trained on.
    """
    kind, kept, problems = formats[name] if name else None, [], []
    for place, row in rows:
        if kind is None and isinstance(row, dict):
            kind = recognised(row, formats)
        problem = _problem(row, kind, formats)
        if problem is not None:
            problems.append(f"{place}: {problem}")
        elif not problems:
            kept.append(row)
    if problems:
        raise PacaError(problem_list(problems, separator="\n"))
    if kind is None:
        return []
    gathered = kind.gather(kept) if kind.gather else kept
    return [row for row in map(kind.convert, gathered) if row is not None]


def _problem(row: Any, kind: Format | None, formats: Formats) -> str | None:
    if isinstance(row, BadRow):
        return row.problem
    if not isinstance(row, dict):
        keys = _keys(list(formats.values())[-1].fields)
        return f"expected an object with keys such as {keys}, got {type(row).__name__}"
    if kind is None:
        known = "; ".join(f"{one.name} ({', '.join(one.fields)})" for one in formats.values())
        names = [name for one in formats.values() for name in one.fields]
        return f"its keys ({_keys(row)}) are those of no known format{_hint(row, names)}; known: {known}"
    missing = [name for name in kind.fields if name not in row]
    if missing:
        return (
            f"has no {' and no '.join(map(repr, missing))}, as rows of the format {kind.name!r} have; "
            f"its keys: {_keys(row)}{_hint(row, missing)}"
        )
    return kind.problem(row)


def _keys(row: Iterable[str]) -> str:
    return ", ".join(shown(key) for key in list(row)[:12]) or "none"


def _hint(row: Row, fields: Sequence[str]) -> str:
    strange = [str(key)[:60] for key in list(row)[:12] if key not in fields]
    return next(filter(None, (suggestion(key, fields) for key in strange)), "")
