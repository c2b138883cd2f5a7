"""The report as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from paca.workbench.base.markdown import table
from paca.workbench.compare.columns import cell, shown_columns
from paca.workbench.compare.experiments import experiments
from paca.workbench.compare.units import OPERATIONS, THROUGHPUT
from paca.workbench.methods.catalogue import FLOORS


def document(results: Mapping[str, Any]) -> str:
    """Write the report as Markdown; `results` is what results.json holds."""
    recipe = results["recipe"]
    parts = [
        f"# {recipe['model']['name']} on {source_name(recipe['data']['train'])}",
        summary_table(results),
        *filter(None, [notes(results)]),
        *_failures(results),
        *(f"## {found.title}\n\n{table(found.heads, found.rows)}" for found in experiments(results).values()),
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
    found += [_seeds_note(results)] if "loss" in results["best"] else []
    if results["noise"] is not None:
        found.append(
            f"The floor timed again: {results['noise']:.3f} × itself; ratios closer to 1 than that mean nothing."
        )
    if results["pareto"]:
        found.append(f"No other method has less of both peak memory and loss: {', '.join(results['pareto'])}.")
    return " ".join(filter(None, found))


def _seeds_note(results: Mapping[str, Any]) -> str:
    fewest = min(len(row["seeds"]) for row in results["methods"] if row.get("seeds") and row["method"] not in FLOORS)
    if fewest == 1:
        return (
            "One seed: how far losses scatter between runs is not known, so none is called the lowest; add --seeds 3."
        )
    return (
        "" if results["best"]["loss"] else f"Over {fewest} seeds no loss is lower than the others by more than noise."
    )


def _failures(results: Mapping[str, Any]) -> list[str]:
    failed = [f"- **{row['method']}**: {row['error']}" for row in results["methods"] if row["error"]]
    return ["## Methods that failed", "\n".join(failed)] if failed else []


def how(results: Mapping[str, Any]) -> str:
    """What was measured on what, and how; of what was not measured it says nothing."""
    machine, rows = results["machine"], results["methods"]
    where = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    said = {
        f"{where}{machine['cpu']}, {machine['threads']} threads. Methods are matched by {results['match']}.": True,
        "Bytes are those of live storages, exact and the same on every machine.": _any(rows, "peak_bytes"),
        "Times are lower quartiles of steps that all methods took in turns; ratios to the floor are medians over the "
        "rounds.": _any(rows, "step_ms"),
        "Throughput was timed method after method, not in turns.": _any(rows, THROUGHPUT),
        "Operations are counted, not timed.": _any(rows, OPERATIONS),
    }
    return " ".join(text for text, holds in said.items() if holds)


def _any(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(row.get(key) is not None for row in rows)


def source_name(source: Any) -> str:
    """Write what a recipe's `data.train` names."""
    return source if isinstance(source, str) else ", ".join(source)
