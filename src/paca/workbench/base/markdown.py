"""Tables in Markdown."""

from collections.abc import Collection, Iterable, Iterator, Sequence


def table(columns: Sequence[str], rows: Iterable[Iterable[str]], text: Collection[str] = ()) -> str:
    """Write a table; its first column and those named in `text` are aligned to the left, the others to the right."""
    return "\n".join(table_lines(columns, rows, text))


def table_lines(columns: Sequence[str], rows: Iterable[Iterable[str]], text: Collection[str] = ()) -> Iterator[str]:
    """Write a table as `table` does, each row as soon as it is there."""
    yield _line(columns)
    yield _line("---" if place == 0 or title in text else "---:" for place, title in enumerate(columns))
    yield from map(_line, rows)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
