"""Reads the rows of data files: JSON lines, JSON lists, CSV, Parquet. Every row comes with its place.

Nothing here runs code that a file brings along: pickles, and whatever may hold one, are refused by their suffix.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import one_line, shown
from paca.workbench.data import mmlu
from paca.workbench.data.formats import BadRow, recognised
from paca.workbench.data.preference_formats import PREFERENCE_FORMATS

Placed = Iterator[tuple[str, Any]]

UNSAFE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".h5"}


def read_text(path: Path) -> str:
    """Read a UTF-8 file without its byte order mark; a PacaError if it can't be read, is empty, or is no UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PacaError(f"The data file {path} is not UTF-8 text: {error}.") from error
    except OSError as error:
        raise PacaError(f"The data file {path} can't be read: {one_line(error)}.") from error
    if not text.strip():
        raise PacaError(f"The data file {path} is empty.")
    return text


def read_json_lines(path: Path) -> Placed:
    """Read one JSON value per line: `file:line`, and the value or a `BadRow`, of each."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return ((f"{path}:{number}", _parsed(line)) for number, line in lines if line.strip())


def _parsed(line: str) -> Any:
    excerpt = line if len(line) <= 60 else line[:60] + "…"
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON ({error.msg}, column {error.colno}): {excerpt}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested without end
        return BadRow(f"not JSON that can be read ({one_line(error)}): {excerpt}")


def read_json_list(path: Path) -> Placed:
    """Read the place and the row of each entry of a JSON file, which holds one list of rows, or one row per line."""
    text = read_text(path)
    value = _parsed(text)
    if isinstance(value, BadRow) and "Extra data" in value.problem:
        return read_json_lines(path)
    if isinstance(value, BadRow):
        raise PacaError(f"The data file {path} is {value.problem}")
    if not isinstance(value, list):
        raise PacaError(f"The data file {path} must hold a list of rows, got {shown(value)}.")
    return ((f"{path}, row {number}", row) for number, row in enumerate(value, start=1))


def read_csv(path: Path) -> Placed:
    """Read a CSV file with a header, or one of MMLU's, which have none.

    Gives `file, row number`, and the row as a mapping or a `BadRow`, of each. A PacaError if the file has neither
    known columns nor MMLU's six.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise PacaError(f"The data file {path} is not valid CSV: {one_line(error)}.") from error
    rows = [row for row in rows if row]
    header = rows[0]
    columns = dict.fromkeys(header)
    if recognised(columns) is not None or recognised(columns, PREFERENCE_FORMATS) is not None:
        placed = enumerate(rows[1:], start=2)
        return ((f"{path}, row {number}", _record(header, row)) for number, row in placed)
    if len(header) != len(mmlu.COLUMNS) or header[-1].strip() not in tuple(mmlu.LETTERS):
        raise PacaError(
            f"The data file {path} has the columns {shown(header)}: neither those of a known format nor MMLU's six "
            f"({', '.join(mmlu.COLUMNS)}, without a header). Add data.format=text to read it as plain text."
        )
    header, subject = [*mmlu.COLUMNS, "subject"], mmlu.subject_of(path)
    return ((f"{path}, row {number}", _record(header, [*row, subject])) for number, row in enumerate(rows, start=1))


def _record(header: list[str], row: list[str]) -> Any:
    if len(row) != len(header):
        return BadRow(f"has {len(row)} columns where the file has {len(header)}")
    return dict(zip(header, row, strict=True))


def read_parquet(path: Path) -> Placed:
    """Read `file, row number`, and the row, of each row of a Parquet file; a PacaError if it is damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise PacaError(f"The data file {path} is no whole Parquet file: {one_line(error)}") from error
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


READERS: dict[str, Callable[[Path], Placed]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_list,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
