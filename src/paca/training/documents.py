"""Reads what a recipe's data section names: built-ins, text files, JSONL, and data sets of the Hub. No tokens here.

A row is a dict with `text`, or one with chat `messages`. Every problem names the file and the line.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.training.schema import suggestion

Row = dict[str, Any]

TEXT_SUFFIXES = {".txt", ".text", ".md", ".rst", ".py", ".html", ".tex", ".csv", ".log"}
JSONL_SUFFIXES = {".jsonl", ".ndjson"}
MOST_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Documents:
    """Rows from one source or several.

    Args:
        rows: All of one kind: with `text`, or with `messages`.
        continuous: The rows are plain text files, which have no natural parts that could be held out.
    """

    rows: list[Row]
    continuous: bool = False

    @property
    def is_chat(self) -> bool:
        """Whether the rows are conversations."""
        return "messages" in self.rows[0]


def read_documents(source: str | list[str], subset: str | None = None, split: str = "train") -> Documents:
    """Read a source of a recipe's data section.

    Args:
        source: A built-in's name, a file, a list of files, a folder, or the name of a data set on the Hub.
        subset: The configuration of a data set that has several.
        split: The split of a data set.

    Returns:
        At least one row.

    Raises:
        PacaError: If something is missing, cannot be parsed, or mixes conversations with text.
    """
    sources = [source] if isinstance(source, str) else source
    parts = [_read_one(name, subset, split) for name in sources]
    rows = [row for part in parts for row in part.rows]
    if not rows:
        raise PacaError(f"The data {source!r} holds no rows.")
    if len({"messages" in row for row in rows}) > 1:
        raise PacaError(f"The data {source!r} mixes conversations with plain text; use one recipe for each.")
    return Documents(rows, continuous=all(part.continuous for part in parts))


def near_files(path: Path) -> str:
    """Return `; near: 'a.txt'` for files in `path`'s folder whose names are close, or say that the folder is missing.

    Args:
        path: A file that does not exist.

    Returns:
        Text to append to an error message.
    """
    folder = path.parent
    if not folder.is_dir():
        return f"; there is no folder {str(folder)!r} either"
    near = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=3)
    return f"; did you mean {' or '.join(repr(str(folder / name)) for name in near)}?" if near else ""


def python_reference() -> list[Row]:
    """Return the Python language reference that ships inside Python, one row per topic, sorted by name."""
    from pydoc_data.topics import topics

    return [{"text": topics[name]} for name in sorted(topics)]


BUILT_INS = {"python-reference": python_reference}


def _read_one(name: str, subset: str | None, split: str) -> Documents:
    path = Path(name).expanduser()
    is_file_or_built_in = name in BUILT_INS or (not path.is_dir() and (path.exists() or _looks_like_file(name)))
    if is_file_or_built_in and subset is not None:
        raise PacaError(f"data.subset = {subset!r} says nothing about {name!r}; only data sets have subsets.")
    if name in BUILT_INS:
        return Documents(BUILT_INS[name]())
    if not is_file_or_built_in:
        return Documents(_load_data_set(name, subset, split))
    if not path.is_file():
        raise PacaError(f"There is no data file {name!r}{near_files(path)}.")
    if path.suffix in JSONL_SUFFIXES:
        return Documents(list(_read_jsonl(path)))
    return Documents([{"text": _read_text(path)}], continuous=True)


def _looks_like_file(name: str) -> bool:
    """Tell a path from a name on the Hub, which is `name` or `owner/name`."""
    suffix = Path(name).suffix
    return suffix in TEXT_SUFFIXES | JSONL_SUFFIXES or name.startswith((".", "/", "~")) or name.count("/") > 1


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PacaError(f"The data file {path} is not UTF-8 text: {error}.") from error
    if not text.strip():
        raise PacaError(f"The data file {path} is empty.")
    return text


def _read_jsonl(path: Path) -> Iterator[Row]:
    problems = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            excerpt = line if len(line) <= 60 else line[:60] + "…"
            problems.append(f"{path}:{number}: not valid JSON ({error.msg}, column {error.colno}): {excerpt}")
            continue
        problem = row_problem(row)
        if problem:
            problems.append(f"{path}:{number}: {problem}")
        elif not problems:
            yield _only_what_is_read(row)
    if problems:
        raise PacaError(_listed(problems))


def _listed(problems: list[str]) -> str:
    more = len(problems) - MOST_PROBLEMS_SHOWN
    return "\n".join(problems[:MOST_PROBLEMS_SHOWN] + ([f"and {more} more"] if more > 0 else []))


def _only_what_is_read(row: Row) -> Row:
    return {"messages": row["messages"]} if "messages" in row else {"text": row["text"]}


def row_problem(row: Any) -> str | None:
    """Say why a row can't be trained on.

    Args:
        row: One value of a JSONL file, or one row of a data set.

    Returns:
        What is wrong and what is expected, or None for a good row.
    """
    if not isinstance(row, dict):
        return f"expected an object with 'text' or 'messages', got {type(row).__name__}"
    if "messages" in row:
        return _messages_problem(row["messages"])
    if "text" not in row:
        keys = ", ".join(map(repr, row)) or "none"
        hint = next(filter(None, (suggestion(key, ("text", "messages")) for key in row)), "")
        return f"has neither 'text' nor 'messages'; its keys: {keys}{hint}"
    if not isinstance(row["text"], str):
        return f"'text' must be a string, got {type(row['text']).__name__}"
    return None


def _messages_problem(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"'messages' must be a list of {{'role': …, 'content': …}}, got {messages!r:.60}"
    for position, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            return f"message {position} must hold strings 'role' and 'content', got {message!r:.60}"
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        return f"no message has the role 'assistant', so there is nothing to learn; roles: {', '.join(roles)}"
    if roles[0] == "assistant":
        return "the first message has the role 'assistant', so it answers nothing; start with 'user' or 'system'"
    return None


def _load_data_set(name: str, subset: str | None, split: str) -> list[Row]:
    import datasets

    try:
        data_set = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PacaError(
            f"The data {name!r} is neither a file nor a built-in ({', '.join(BUILT_INS)}){suggestion(name, BUILT_INS)}"
            f"{_near_path(name)}, and could not be loaded as a data set: {error}"
        ) from error
    return list(_checked_rows(name, data_set))


def _near_path(name: str) -> str:
    path = Path(name)
    return near_files(path) if path.parent.is_dir() else ""


def _checked_rows(name: str, data_set: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(data_set):
        problem = row_problem(row)
        if problem:
            raise PacaError(f"The data set {name!r}, row {number}: {problem}.")
        yield _only_what_is_read(row)
