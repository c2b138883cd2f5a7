"""The report as Markdown."""

from collections.abc import Mapping
from typing import Any

from paca.workbench.base.markdown import table
from paca.workbench.compare.columns import cell, shown_columns


def document(results: Mapping[str, Any]) -> str:
    """Write the report as Markdown; `results` is what results.json holds."""
    recipe = results["recipe"]
    parts = [
        f"# {recipe['model']['name']} on {source_name(recipe['data']['train'])}",
        summary_table(results),
        *filter(None, [notes(results)]),
        *_failures(results),
        *_experiments(results),
        "## How it was measured",
        how(results),
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def summary_table(results: Mapping[str, Any]) -> str:
    """One line per method; the best value of a column is bold."""
    columns, best = shown_columns(results), results["best"]
    rows = []
    for row in results["methods"]:
        cells = [
            f"**{cell(row, column)}**" if row["method"] in best.get(column.key, ()) else cell(row, column)
            for column in columns
        ]
        rows.append([row["method"], *cells])
    return table(["method", *(column.title for column in columns)], rows)


def notes(results: Mapping[str, Any]) -> str:
    """What one has to know to read the table: the loss before training, the noise of the times, the Pareto front."""
    found = []
    before = next((row["loss_before"] for row in results["methods"] if row.get("loss_before") is not None), None)
    if before is not None:
        found.append(f"Held-out loss before training: {before:.4f}.")
    if results["noise"] is not None:
        found.append(
            f"The floor timed again: {results['noise']:.3f} × itself; ratios closer to 1 than that mean nothing."
        )
    if results["pareto"]:
        found.append(f"No other method has less of both peak memory and loss: {', '.join(results['pareto'])}.")
    return " ".join(found)


def _failures(results: Mapping[str, Any]) -> list[str]:
    failed = [f"- **{row['method']}**: {row['error']}" for row in results["methods"] if row["error"]]
    return ["## Methods that failed", "\n".join(failed)] if failed else []


def _experiments(results: Mapping[str, Any]) -> list[str]:
    parts = []
    counted = [row for row in results["methods"] if row.get("operations")]
    if counted:
        head = ["method", "forward GFLOP", "backward GFLOP", "forward ms", "backward ms"]
        rows = (
            [
                row["method"],
                *(f"{row['operations'][key] / 1e9:,.1f}" for key in ("forward", "backward")),
                *(f"{row['operations'][key]:,.1f}" for key in ("forward_ms", "backward_ms")),
            ]
            for row in counted
        )
        parts += ["## Operations of a step", table(head, rows)]
    filled = [row for row in results["methods"] if row.get("throughput")]
    if filled:
        head = ["method", "sequences", "sequences/s", "tokens/s", "peak MiB"]
        points = (
            [
                row["method"],
                f"{point['sequences']}",
                f"{point['sequences_per_second']:,.2f}",
                f"{point['tokens_per_second']:,.0f}",
                f"{(point['peak_bytes'] or 0) / 2**20:,.0f}",
            ]
            for row in filled
            for point in row["throughput"]["points"]
        )
        parts += ["## Throughput as the batch grows", table(head, points)]
    return parts


def how(results: Mapping[str, Any]) -> str:
    """What was measured on what, and how."""
    machine = results["machine"]
    where = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    return (
        f"{where}{machine['cpu']}, {machine['threads']} threads. Ranks: matched by {results['match']}. "
        "Bytes are those of live storages, exact and the same on every machine. Times are lower quartiles of steps "
        "that all methods took in turns; ratios to the floor are medians over the rounds."
    )


def source_name(source: Any) -> str:
    """Write what a recipe's `data.train` names."""
    return source if isinstance(source, str) else ", ".join(source)
