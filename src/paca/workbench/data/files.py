"""Reads the rows of data files: JSON lines, JSON lists, CSV, Parquet, compressed or not. Every row has its place.

Nothing here runs code that a file brings along: pickles, and whatever may hold one, are refused by their suffix.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import one_line, shown
from paca.workbench.data import mmlu
from paca.workbench.data.formats import FORMATS, BadRow, recognised
from paca.workbench.data.preference_formats import PREFERENCE_FORMATS

Placed = Iterator[tuple[str, Any]]

ARCHIVE_SUFFIXES = {".zip", ".tar", ".tgz", ".zst", ".7z"}
COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz"}
_OPENERS: dict[bytes, Callable[[bytes], bytes]] = {
    rb"\x1f\x8b": gzip.decompress, rb"BZh[1-9]1AY&SY": bz2.decompress, rb"\xfd7zXZ\x00": lzma.decompress
}  # fmt: skip
_OTHERS = {
    rb"PK\x03\x04": "a zip archive: unzip {path}, and name what was in it.",
    rb".{257}ustar": "a tar archive: tar -xf {path}, and name what was in it.",
    rb"\x28\xb5\x2f\xfd": "compressed with zstd: zstd -d {path} -o {stem}",
    rb"\xff\xfe|\xfe\xff": "UTF-16: iconv -f UTF-16 -t UTF-8 {path} > utf8.txt",
    rb"PAR1": "Parquet: rename it to {stem}.parquet",
    rb"%PDF": "a PDF: pdftotext {path} text.txt",
}
UNSAFE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".h5"}


def read_text(path: Path) -> str:
    """Read UTF-8, compressed or not, without its byte order mark; a PacaError if a file is empty or something else."""
    content = decompressed(path)
    other = next((say for magic, say in _OTHERS.items() if re.match(magic, content, re.DOTALL)), None)
    if other is not None:
        typed = other.format(path=path, stem=path.with_suffix(""))
        raise PacaError(f"The data file {path} is not UTF-8 text but {typed}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PacaError(f"The data file {path} is not UTF-8 text: {error}.") from error
    if "\0" in text:
        raise PacaError(f"The data file {path} is not text: it holds zero bytes.")
    if not text.strip():
        raise PacaError(f"The data file {path} is empty.")
    return text


def decompressed(path: Path) -> bytes:
    """Read a file's bytes, those inside it where it is compressed with gzip, bzip2 or xz, whatever its name says."""
    try:
        content = path.read_bytes()
        opener = next((opener for magic, opener in _OPENERS.items() if re.match(magic, content)), None)
        return opener(content) if opener else content
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise PacaError(f"The data file {path} can't be read: {one_line(error)}.") from error


def suffix_of(path: Path) -> str:
    """The suffix that says what is in a file: `.jsonl` of `a.jsonl` and of `a.jsonl.gz`, in lower case."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path
    return inner.suffix.lower()


def read_json_rows(path: Path) -> Placed:
    """Read one JSON value per line, or one list of objects: the place of each, and the value or a `BadRow`.

    A PacaError if the list is cut short, or the file is one object with the rows inside.
    """
    text = read_text(path)
    whole = _parsed(text) if text.lstrip()[0] in "[{" else None
    if isinstance(whole, list) and all(isinstance(row, dict) for row in whole):
        return ((f"{path}, row {number}", row) for number, row in enumerate(whole, start=1))
    if isinstance(whole, dict) and _is_known(whole):
        return iter([(str(path), whole)])
    inside = [key for key, value in whole.items() if isinstance(value, list)] if isinstance(whole, dict) else []
    if inside and (suffix_of(path) == ".json" or "\n" in text.strip()):  # elsewhere it is a row alone on its line
        raise PacaError(
            f"The data file {path} must hold a list of rows, or one row per line, not one object. Its list is under "
            f"{shown(inside[0])}: jq -c '.[{json.dumps(inside[0])[:60]}][]' {path} > rows.jsonl"
        )
    if isinstance(whole, BadRow) and text.lstrip().startswith("[") and "Extra data" not in whole.problem:
        raise PacaError(f"The data file {path} is {whole.problem}")
    lines = enumerate(text.split("\n"), start=1)
    return ((f"{path}:{number}", _parsed(line)) for number, line in lines if line.strip())


def _parsed(text: str) -> Any:
    excerpt = text if len(text) <= 60 else text[:60] + "…"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON ({error.msg}, column {error.colno}): {excerpt}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested without end
        return BadRow(f"not JSON that can be read ({one_line(error)}): {excerpt}")


def holds_json_rows(path: Path) -> bool:
    """Whether a file of whatever name holds JSON objects: one on each of its first lines, or a list of them."""
    text = read_text(path).strip()
    if text.startswith("{"):
        lines = list(islice(filter(str.strip, text.split("\n")), 3))
        return all(isinstance(_parsed(line), dict) for line in lines)
    if text.startswith("["):
        value = _parsed(text)
        return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
    return False


def read_csv(path: Path, delimiter: str = ",") -> Placed:
    """Read a CSV file with a header, or one of MMLU's, which have none.

    Gives `file, row number`, and the row as a mapping or a `BadRow`, of each. A PacaError if the file has neither
    known columns nor MMLU's six.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True, delimiter=delimiter))
    except csv.Error as error:
        raise PacaError(f"The data file {path} is not valid CSV: {one_line(error)}.") from error
    rows = [row for row in rows if row]
    header = rows[0]
    if _is_known(dict.fromkeys(header)):
        placed = enumerate(rows[1:], start=2)
        return ((f"{path}, row {number}", _record(header, row)) for number, row in placed)
    if len(header) != len(mmlu.COLUMNS) or header[-1].strip() not in tuple(mmlu.LETTERS):
        raise PacaError(
            f"The data file {path} has the columns {shown(header)}: neither those of a known format nor MMLU's six "
            f"({', '.join(mmlu.COLUMNS)}, without a header). Add data.format=text to read it as plain text."
        )
    header, subject = [*mmlu.COLUMNS, "subject"], mmlu.subject_of(path)
    return ((f"{path}, row {number}", _record(header, [*row, subject])) for number, row in enumerate(rows, start=1))


def _is_known(row: Mapping[str, Any]) -> bool:
    return any(recognised(row, formats) is not None for formats in (FORMATS, PREFERENCE_FORMATS))


def _record(header: list[str], row: list[str]) -> Any:
    if len(row) != len(header):
        return BadRow(f"has {len(row)} columns where the file has {len(header)}")
    return dict(zip(header, row, strict=True))


def read_parquet(path: Path) -> Placed:
    """Read `file, row number`, and the row, of each row of a Parquet file; a PacaError if it is damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(decompressed(path))).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise PacaError(f"The data file {path} is no whole Parquet file: {one_line(error)}") from error
    return ((f"{path}, row {number}", without_nulls(row)) for number, row in enumerate(rows, start=1))


def without_nulls(row: Any) -> Any:
    """Drop the nulls inside a row's columns: Arrow gives every mapping in a column all keys that any of them has."""
    return {key: _pruned(value) for key, value in row.items()} if isinstance(row, dict) else row


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return list(map(_pruned, value)) if isinstance(value, list) else value


READERS: dict[str, Callable[[Path], Placed]] = {
    ".jsonl": read_json_rows,
    ".ndjson": read_json_rows,
    ".json": read_json_rows,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".parquet": read_parquet,
}
