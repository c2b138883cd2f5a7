"""Results as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from paca.errors import first_few

MOST_ROWS = 20
MOST_REASONS = 3
Result = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Write rows in aligned columns, the first to the left and numbers to the right."""
    cells = [list(header), *([_shown(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    ]


def harness_table(result: Result) -> list[str]:
    """Show the scores from `harness.score`; tasks of a group only while they are few."""
    groups, tasks = result["groups"], result["tasks"]
    shown = {**groups, **(tasks if not groups or len(tasks) <= MOST_ROWS else {})}
    metrics = list(
        dict.fromkeys(name for entry in shown.values() for name in entry["metrics"] if "_stderr" not in name)
    )
    rows = [
        [
            entry["name"] or name,
            entry["questions"],
            *(part for metric in metrics for part in (entry["metrics"].get(metric), _error(entry, metric))),
        ]
        for name, entry in shown.items()
    ]
    header = ["task", "questions", *(part for metric in metrics for part in (metric, "±"))]
    return table(header, rows)


def perplexity_table(result: Result) -> list[str]:
    """Show a measurement on texts in one line."""
    sequences, every = result["sequences"], result["all_sequences"]
    of_all = f" of {every:,}" if sequences < every else ""
    return [
        f"perplexity {result['perplexity']:.3f} (loss {result['loss']:.4f} over {result['tokens']:,} tokens in "
        f"{sequences:,}{of_all} sequences)"
    ]


def preference_table(result: Result) -> list[str]:
    """Say what is preferred, how far the model is from what it is compared with, and how many rows are cut."""
    compared, cut = result["reference"] or "the base", result["cut"]
    lines = [
        f"preference accuracy {result['accuracy']:.1%} ± {result['accuracy_error']:.1%} of {result['rows']:,} rows, "
        f"reward margin {result['margin']:.3f}; the likelier answer is the preferred one in "
        f"{result['likelihood_accuracy']:.1%}; KL from {compared} {result['kl']:.4f} nats per token"
    ]
    if cut["rows"]:
        lines.append(
            f"{cut['rows']:,} of {cut['of']:,} rows are cut at {cut['at']:,} tokens, {cut['left_out']:,} of them left "
            "out since nothing is left to compare; raise --length"
        )
    return lines


def answers_table(result: Result) -> list[str]:
    """Say how many questions were answered, and how many turns had no room."""
    lines = [f"{result['answered']} questions of two turns answered"]
    if result["without_room"]:
        lines.append(f"{result['without_room']} turns have no answer: the model could read no more")
    return lines


def scores_table(result: Result) -> list[str]:
    """Show a judge's scores by category, and say what counts in no mean, and why."""
    columns = ["score", "turn_1", "turn_2", "verdicts", "malformed"]
    columns += ["refused"] if result["refused"] else []
    entries = {**result["categories"], "average": result["average"]}
    rows = [[name, *(entry[column] for column in columns)] for name, entry in entries.items()]
    lines = table(["category", *(column.replace("_", " ") for column in columns)], rows)
    if result["malformed"]:
        counted = ", ".join(f"{count} {reason}" for reason, count in result["malformed"].items())
        lines.append(
            f"{result['average']['malformed']} malformed verdicts count in no mean; their texts are kept: {counted}"
        )
    if result["cut_at"] is not None:
        lines.append(
            f"verdicts were cut at {result['cut_at']} tokens: raise --judge-max-tokens and repeat the command; only "
            "these are asked for again"
        )
    if result["refused"]:
        reasons = [f"question {key.replace(':', ', turn ')}: {reason}" for key, reason in result["refused"].items()]
        lines.append(f"{len(reasons)} calls were refused and count in no mean: {first_few(reasons, MOST_REASONS)}")
    if result["asked_with"]:
        lines.append(f"this judge wants {', '.join(result['asked_with'])}")
    return lines


def _error(entry: Result, metric: str) -> Any:
    name, comma, rest = metric.partition(",")
    return entry["metrics"].get(f"{name}_stderr{comma}{rest}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
