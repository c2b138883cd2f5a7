"""What a comparison prints: tables that fit a terminal, each with the part of the report that its columns are of."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from paca.workbench.base.terminal import narrow_table
from paca.workbench.compare.columns import Column, cell, shown_columns
from paca.workbench.compare.experiments import experiments

PARTS = {
    "what was learned": ("rank", "trained_parameters", "rate", "loss", "accuracy", "forgotten"),
    "a step": ("step_ms", "to_floor", "tokens_per_second", "kept_bytes", "peak_bytes", "max_tokens"),
    "afterwards": ("file_bytes", "merge_ms", "latency_ms", "merged_latency_ms"),
}


def summary_tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """The columns of the report's table in three, best values bold; `results` is what results.json holds."""
    columns = {column.key: column for column in shown_columns(results)}
    for title, keys in PARTS.items():
        shown = [columns[key] for key in keys if key in columns]
        rows = [row for row in results["methods"] if any(row.get(column.key) is not None for column in shown)]
        if rows:
            heads = [column.title for column in shown]
            yield narrow_table(title, heads, [_cells(row, shown, results["best"]) for row in rows])


def experiment_tables(results: Mapping[str, Any], kinds: Sequence[str]) -> Iterator[Table]:
    """What was found without training by the experiments of these names."""
    found = experiments(results)
    for kind in kinds:
        if kind in found:
            yield narrow_table(found[kind].title, found[kind].heads[1:], found[kind].rows)


def _cells(row: Mapping[str, Any], columns: Sequence[Column], best: Mapping[str, Any]) -> list[Any]:
    name = row["method"]
    return [name, *(Text(cell(row, column), "bold" if name in best.get(column.key, ()) else "") for column in columns)]
