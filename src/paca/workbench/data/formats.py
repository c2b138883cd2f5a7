"""The formats that training data comes in, told by their fields, and what a row of each becomes.

That is a row with `text`, one with `messages` and perhaps `tools`, or one with a `prompt` and the `completion` that is
learned; each knows its place, for whoever has something to say about it later.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import problem_list, shown, string_problem, suggestion
from paca.workbench.data import chat_formats as chat
from paca.workbench.data import mmlu, oasst
from paca.workbench.data.remarks import Remarks
from paca.workbench.data.turns import MEDIA

Placed = tuple[str, dict[str, Any]]


class Row(dict[str, Any]):
    """A row that can be trained on.

    Args:
        content: What is in it.
        place: Where it was read, such as `file:3`.
    """

    def __init__(self, content: Mapping[str, Any], place: str) -> None:
        super().__init__(content)
        self.place = place


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
        gather: Puts rows together, with their places, that make one only together.
        used: Further columns that are used where a row has them.
        unused: Says what is in a good row's fields that can't be honoured.
    """

    name: str
    fields: tuple[str, ...]
    description: str
    problem: Callable[[dict[str, Any]], str | None]
    convert: Callable[[dict[str, Any]], dict[str, Any] | None]
    gather: Callable[[list[Placed]], list[Placed]] | None = None
    used: tuple[str, ...] = ()
    unused: Callable[[dict[str, Any]], Iterable[str]] = lambda row: ()


def _strings_problem(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next(filter(None, (string_problem(name, row[name]) for name in names if name in row)), None)


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
        used=("message_tree_id", "rank", "deleted", "synthetic"),
    ),
    Format(
        "prompt-completion", ("prompt", "completion"), "two strings, of which the second is learned",
        lambda row: _strings_problem(row, ("prompt", "completion")),
        lambda row: {key: row[key] for key in ("prompt", "completion")},
    ),
    Format(
        "alpaca", ("instruction", "output"), "a question, its `input` if there is one, and the answer",
        chat.alpaca_problem, chat.from_alpaca, used=("input", *chat.CONTEXT),
    ),
    Format(
        "sharegpt", ("conversations",), "a list of turns with `from` (human, gpt, system, …) and `value`",
        chat.sharegpt_problem, chat.from_sharegpt, used=chat.CONTEXT, unused=chat.unused_in_sharegpt,
    ),
    Format(
        "messages", ("messages",), "a list of turns with `role` and `content`",
        chat.conversation_problem, chat.conversation, used=chat.CONTEXT, unused=chat.unused_in_messages,
    ),
    Format(
        "mmlu", ("question", "choices", "answer"), "a multiple-choice question as on the Hub: the letter is learned",
        mmlu.question_problem, mmlu.question_row, used=("subject",),
    ),
    Format(
        "mmlu-letters", mmlu.COLUMNS, "the same with a column for each choice, as in the authors' CSV files",
        mmlu.question_problem, mmlu.question_row, used=("subject",),
    ),
    Format(
        "text", ("text",), "plain text, all of it learned",
        lambda row: string_problem("text", row["text"]), lambda row: {"text": row["text"]},
    ),
)  # fmt: skip
Formats = Mapping[str, Format]
FORMATS: Formats = {kind.name: kind for kind in _ALL}


def recognised(row: Mapping[str, Any], formats: Formats = FORMATS) -> Format | None:
    """Tell a row's format by its fields; None where it has the fields of none."""
    return next((kind for kind in formats.values() if all(name in row for name in kind.fields)), None)


def convert_rows(
    rows: Iterable[tuple[str, Any]],
    name: str | None = None,
    formats: Formats = FORMATS,
    remarks: Remarks | None = None,
) -> list[Row]:
    """Read rows of one source, all in the format `name` of `formats`, by default that of the first row.

    Each comes with its place, such as `file:3`, and keeps it. The rows returned are what their format makes of them;
    what else they had that can't be used is added to `remarks`. A PacaError has the first few rows that can't be
    trained on.
    """
    kind, kept, problems = formats[name] if name else None, [], []
    remarks = Remarks() if remarks is None else remarks
    for place, row in rows:
        if kind is None and isinstance(row, dict):
            kind = recognised(row, formats)
        problem = _problem(row, kind, formats)
        if problem is not None:
            problems.append(f"{place}: {problem}")
        elif not problems and kind is not None:
            kept.append((place, row))
            _remark(place, row, kind, remarks)
    if problems:
        raise PacaError(problem_list(problems, separator="\n"))
    if kind is None:
        return []
    gathered = kind.gather(kept) if kind.gather else kept
    converted = ((place, kind.convert(row)) for place, row in gathered)
    return [Row(row, place) for place, row in converted if row is not None]


def _remark(place: str, row: dict[str, Any], kind: Format, remarks: Remarks) -> None:
    """Note what a row holds that is not used: what carries meaning with its place, other columns by their name."""
    for key, value in row.items():
        if key in (*kind.fields, *kind.used) or value is None or value in ("", [], {}):
            continue
        if key in MEDIA:
            remarks.add(chat.unused_media(key), place)
        elif key in chat.CONTEXT:
            remarks.add(f"{key!r} is not used by the format {kind.name!r}", place)
        else:
            remarks.columns[str(key)] = None
    for remark in kind.unused(row):
        remarks.add(remark, place)


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


def _hint(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    strange = [str(key)[:60] for key in list(row)[:12] if key not in fields]
    return next(filter(None, (suggestion(key, fields) for key in strange)), "")
