"""The columns of the summary table, for every format of the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        key: Of a method's row.
        title: What its head says.
        help: What exactly it is, in one line.
        format: Writes a value.
        best: Which value is the best one, `min` or `max`; None where none is.
        spread: Of a method's row: how far off the value may be, written behind it where there is one.
        error: Of a method's row: one standard error of the value. None in the row where one seed tells none; a column
            without is exact.
        timed: It is a time of steps that methods took in turns, as precise as the floor's two timings are alike.
        learnt: It says what was learned, so that a method that learned nothing is never the best.
    """

    key: str
    title: str
    help: str
    format: Callable[[Any], str]
    best: Callable[..., Any] | None = None
    spread: str | None = None
    error: str | None = None
    timed: bool = False
    learnt: bool = False


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _mib(value: float) -> str:
    return f"{value / 2**20:,.1f}"


def _fixed(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:,.{digits}f}"


COLUMNS = (
    Column("rank", "rank", "of the adapter", str),
    Column("trained_parameters", "trained", "values that are trained", _count),
    Column("steps", "steps", "of the optimizer, where methods take the same time and not as many", _count),
    Column("rate", "rate", "learning rate", lambda value: f"{value:.3g}"),
    Column(
        "loss",
        "held-out loss",
        "at the end of training, nats per token; mean over seeds",
        _fixed(4),
        min,
        "loss_spread",
        "loss_error",
        learnt=True,
    ),
    Column(
        "accuracy",
        "accuracy %",
        "next-token, on the held-out data",
        lambda value: f"{100 * value:.2f}",
        max,
        error="accuracy_error",
        learnt=True,
    ),
    Column(
        "forgotten",
        "forgotten",
        "rise of the loss on a text that has nothing to do with the task",
        _fixed(4),
        min,
        error="forgotten_error",
        learnt=True,
    ),
    Column(
        "step_ms",
        "step ms",
        "one step, methods in turns; lower quartile",
        _fixed(1),
        min,
        error="step_ms_error",
        timed=True,
    ),
    Column(
        "to_floor",
        "× floor",
        "step over the frozen model's forward and input gradients; median over rounds, and its standard error",
        _fixed(3),
        min,
        "to_floor_error",
        "to_floor_error",
        timed=True,
    ),
    Column(
        "tokens_per_second",
        "tokens/s",
        "in training, from the step time",
        _count,
        max,
        error="tokens_per_second_error",
        timed=True,
    ),
    Column("kept_bytes", "kept MiB", "activations that forward keeps for backward", _mib, min),
    Column("peak_bytes", "peak MiB", "live bytes at the peak of a step, weights and optimizer included", _mib, min),
    Column("file_bytes", "file MiB", "the adapter on disk; for full fine-tuning all weights", _mib, min),
    # These are timed at the end of each run, not in turns: none of them is the best.
    Column("merge_ms", "merge ms", "to merge the adapter into the weights, once; not in turns", _fixed(0)),
    Column("latency_ms", "forward ms", "inference with the adapter, one evaluation batch; not in turns", _fixed(1)),
    Column("merged_latency_ms", "merged ms", "the same after merging; not in turns", _fixed(1)),
    Column("max_tokens", "longest", "sequence, in tokens, that a step within the memory limit takes", _count, max),
)


def shown_columns(results: Mapping[str, Any]) -> list[Column]:
    """The columns in which some method has a value."""
    rows = results["methods"]
    return [column for column in COLUMNS if any(row.get(column.key) is not None for row in rows)]


def cell(row: Mapping[str, Any], column: Column) -> str:
    """Write a method's value in a column, with its spread where there is one; a dash where there is no value."""
    value = row.get(column.key)
    if value is None:
        return "–"
    spread = row.get(column.spread) if column.spread else None
    return column.format(value) + (f" ± {column.format(spread)}" if spread is not None else "")
