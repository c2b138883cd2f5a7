"""What was found without training, as cells of tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paca.workbench.compare.units import LONGEST, OPERATIONS, THROUGHPUT


@dataclass(frozen=True)
class Found:
    """What one experiment found.

    Args:
        title: What stands above the table.
        heads: Of its columns, `method` first.
        rows: Its cells.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def experiments(results: Mapping[str, Any]) -> dict[str, Found]:
    """What each experiment found that was carried out, by its name; `results` is what results.json holds."""
    rows = results["methods"]
    tables = {OPERATIONS: _operations(rows), THROUGHPUT: _throughput(rows), LONGEST: _longest(rows)}
    return {name: found for name, found in tables.items() if found.rows}


def _operations(methods: Sequence[Mapping[str, Any]]) -> Found:
    rows = [
        [row["method"], *(f"{row[OPERATIONS][phase] / 1e9:,.1f}" for phase in ("forward", "backward"))]
        for row in methods
        if row.get(OPERATIONS)
    ]
    return Found("Operations of a step", ["method", "forward GFLOP", "backward GFLOP"], rows)


def _throughput(methods: Sequence[Mapping[str, Any]]) -> Found:
    rows = [
        [
            row["method"],
            f"{point['sequences']}",
            f"{point['sequences_per_second']:,.2f}",
            f"{point['tokens_per_second']:,.0f}",
            f"{(point['peak_bytes'] or 0) / 2**20:,.0f}",
        ]
        for row in methods
        if row.get(THROUGHPUT)
        for point in row[THROUGHPUT]["points"]
    ]
    heads = ["method", "sequences", "sequences/s", "tokens/s", "peak MiB"]
    return Found("Throughput as the batch grows", heads, rows)


def _longest(methods: Sequence[Mapping[str, Any]]) -> Found:
    rows = [
        [row["method"], f"{row[LONGEST]['tokens']:,}", f"{row[LONGEST]['limit'] / 1e9:,.2f}"]
        for row in methods
        if row.get(LONGEST)
    ]
    return Found("Longest sequence", ["method", "tokens", "limit GB"], rows)
