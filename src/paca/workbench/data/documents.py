"""Finds what a recipe's data section names: built-ins, files, folders, and data sets of the Hub. No tokens here.

A row that comes out has `text`, chat `messages`, or a `prompt` and its `completion`.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import LONGEST_NAME, one_line, shown, suggestion
from paca.workbench.data.files import (
    ARCHIVE_SUFFIXES,
    COMPRESSED_SUFFIXES,
    READERS,
    UNSAFE_SUFFIXES,
    holds_json_rows,
    read_csv,
    read_json_rows,
    read_text,
    suffix_of,
    without_nulls,
)
from paca.workbench.data.formats import FORMATS, Formats, Row, convert_rows
from paca.workbench.data.remarks import Remarks

TEXT_SUFFIXES = {
    ".txt", ".text", ".md", ".rst", ".org", ".html", ".htm", ".xml", ".tex", ".log",
    ".py", ".c", ".h", ".cc", ".cpp", ".go", ".java", ".js", ".rs", ".sh", ".ts",
}  # fmt: skip
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}


@dataclass(frozen=True)
class Documents:
    """Rows from one source, or from several of one kind.

    Args:
        rows: All of one kind: with `text`, or all others.
        continuous: The rows are plain text files, which have no natural parts that could be held out.
        remarks: What of the rows is not used.
    """

    rows: list[Row]
    continuous: bool = False
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def is_text(self) -> bool:
        """Whether the rows are plain text, all of which is learned, rather than questions with answers."""
        return "text" in self.rows[0]


@dataclass(frozen=True)
class Place:
    """Where sources are looked for, and how they are read.

    Args:
        folder: Names are those of files and folders in it; None for built-ins, paths, and names on the Hub.
        subset: The configuration of a data set that has several.
        split: The split of a data set.
        format: A name in `formats`; told from the first row when omitted.
        formats: Those that are known.
    """

    folder: str | None = None
    subset: str | None = None
    split: str = "train"
    format: str | None = None
    formats: Formats = field(default_factory=lambda: FORMATS)


def read_sources(sources: Sequence[str], place: Place) -> list[Documents]:
    """Read each source of a recipe's data section by itself; a PacaError says what is missing or cannot be read."""
    parts = [_read_one(name, place) for name in sources]
    empty = next((name for name, part in zip(sources, parts, strict=True) if not part.rows), None)
    if empty is not None:
        raise PacaError(f"The data {empty!r} holds no rows that can be learned.")
    return parts


def joined(sources: Sequence[str], parts: list[Documents]) -> Documents:
    """Join the rows of several sources; a PacaError if some hold text and others conversations."""
    if len({part.is_text for part in parts}) > 1:
        raise PacaError(
            f"The data {sources!r} mixes conversations with plain text. Say in which proportion with data.weights, "
            f"such as data.weights={[1] * len(sources)}, or use one recipe for each."
        )
    whole = Documents([row for part in parts for row in part.rows], all(part.continuous for part in parts))
    whole.remarks.extend(part.remarks for part in parts)
    return whole


def near_files(path: Path) -> str:
    """Return `; near: 'a.txt'` for files with names close to a missing one, or say that the folder is missing."""
    folder = path.parent
    if not os.path.isdir(folder):
        return f"; there is no folder {str(folder)!r} either"
    near = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=3)
    return f"; did you mean {' or '.join(repr(str(folder / name)) for name in near)}?" if near else ""


def missing_path(name: str, what: str) -> str | None:
    """Say that there is no `what` by that name; None where there is, or the name may be one on the Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    path = Path(name).expanduser()
    if os.path.exists(path):
        return None
    try:
        validate_repo_id(name)
        is_path = _looks_like_file(name)
    except HFValidationError:
        is_path = True
    place = "" if path.is_absolute() else f" in {str(Path.cwd())!r}"
    return f"There is no {what} {shown(name)}{place}{near_files(path)}" if is_path else None


def python_reference() -> list[dict[str, str]]:
    """Return the Python language reference that ships inside Python, one row per topic, sorted by name."""
    from pydoc_data.topics import topics

    return [{"text": topics[name]} for name in sorted(topics)]


BUILT_INS = {"python-reference": python_reference}


def _read_one(name: str, place: Place) -> Documents:
    if "\0" in name or not name or len(name) > LONGEST_NAME:
        raise PacaError(f"{shown(name)} is no name of a file or a data set.")
    path = Path(name if place.folder is None else Path(place.folder) / name).expanduser()
    built_in = place.folder is None and name in BUILT_INS
    is_folder = os.path.isdir(path)  # as the next, False rather than an exception for a name that no file can have
    is_file_or_built_in = built_in or (
        not is_folder and (os.path.exists(path) or place.folder is not None or _looks_like_file(name))
    )
    if is_file_or_built_in and place.subset is not None:
        raise PacaError(f"data.subset = {place.subset!r} says nothing about {name!r}; only data sets have subsets.")
    if built_in:
        return _converted(((name, row) for row in BUILT_INS[name]()), replace(place, format=None))
    if is_file_or_built_in:
        return _read_file(path, place)
    if not is_folder:
        return _load_data_set(name, place)
    if _are_mmlu(path):
        return _converted(chain.from_iterable(map(read_csv, sorted(path.glob("*.csv")))), place)
    texts = texts_in(path, place.split)
    return joined([name], [_read_file(text, place) for text in texts]) if texts else _load_data_set(str(path), place)


def _converted(rows: Iterable[tuple[str, Any]], place: Place, continuous: bool = False) -> Documents:
    remarks = Remarks()
    return Documents(convert_rows(rows, place.format, place.formats, remarks), continuous, remarks)


def _read_file(path: Path, place: Place) -> Documents:
    if not os.path.isfile(path):
        raise PacaError(f"There is no data file {str(path)!r}{near_files(path)}.")
    suffix, kind = suffix_of(path), place.format
    if suffix in UNSAFE_SUFFIXES:
        raise PacaError(
            f"The data file {str(path)!r} is of a kind that can hold pickles, which run code when they are read. "
            "Write the rows as JSON lines or Parquet."
        )
    if suffix in READERS and (kind != "text" or suffix not in (".csv", ".tsv")):
        return _converted(READERS[suffix](path), place)
    if kind != "text" and holds_json_rows(path):
        try:
            return _converted(read_json_rows(path), place)
        except PacaError as error:
            raise PacaError(f"{error} Add data.format=text to read {str(path)!r} as plain text.") from error
    if kind not in (None, "text"):
        raise PacaError(f"data.format = {kind!r} can't be read from {str(path)!r}; rename it to {', '.join(READERS)}.")
    return _converted([(str(path), {"text": read_text(path)})], place, continuous=True)


def _looks_like_file(name: str) -> bool:
    """Tell a path from a name on the Hub, which is `name` or `owner/name`."""
    suffix = Path(name).suffix
    known = TEXT_SUFFIXES | UNSAFE_SUFFIXES | COMPRESSED_SUFFIXES | ARCHIVE_SUFFIXES | set(READERS)
    return suffix in known or name.startswith((".", "/", "~")) or name.count("/") > 1


def texts_in(folder: Path, split: str) -> list[Path]:
    """List the documents in a folder that holds nothing else, sorted; none in one that holds rows, or a data set.

    Where the folder has others in it that are named after splits, those of `split` alone. A PacaError if documents lie
    beside files of rows.
    """
    card, script = folder / "README.md", folder / f"{folder.name}.py"
    if script.is_file() or (card.is_file() and card.read_bytes().startswith(b"---")):
        return []
    splits = [inner for inner in folder.iterdir() if inner.is_dir() and inner.name.lower() in SPLITS]
    inside = folder / split if splits else folder
    paths = [path for path in sorted(inside.rglob("*")) if path.is_file() and not _is_hidden(path.relative_to(folder))]
    texts = [path for path in paths if suffix_of(path) in TEXT_SUFFIXES]
    rows = [path for path in paths if suffix_of(path) in READERS]
    if rows and any(text.name not in ("README.md", "LICENSE.txt") for text in texts):
        raise PacaError(
            f"The folder {str(folder)!r} holds rows ({rows[0].name}) and documents ({texts[0].name}). Name the files "
            "themselves, or a folder that holds one of them."
        )
    return [] if rows else texts


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _are_mmlu(folder: Path) -> bool:
    """Whether a folder holds MMLU's files, which have no header, so that `datasets` would lose a row of each."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        return False
    try:
        _, row = next(iter(read_csv(files[0])))
    except PacaError:
        return False
    return isinstance(row, dict) and "subject" in row


def _load_data_set(name: str, place: Place) -> Documents:
    import datasets

    missing = missing_path(name, "data file or folder")
    if missing is not None:
        raise PacaError(missing)
    try:
        data_set = datasets.load_dataset(name, place.subset, split=place.split)
    except Exception as error:  # a damaged file may raise what any of its readers raises
        if os.path.isdir(name):
            raise PacaError(f"The folder {name!r} can't be read as a data set: {one_line(error)}") from error
        raise PacaError(
            f"There is no file or folder {name!r} here{_near_path(name)}; it is no built-in ({', '.join(BUILT_INS)})"
            f"{suggestion(name, BUILT_INS)}, and could not be loaded as a data set of the Hub: {one_line(error)}"
        ) from error
    return _converted(_placed(name, data_set), place)


def _near_path(name: str) -> str:
    path = Path(name)
    return near_files(path) if os.path.isdir(path.parent) else ""


def _placed(name: str, data_set: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    yield from ((f"The data set {name!r}, row {number}", without_nulls(row)) for number, row in enumerate(data_set))
