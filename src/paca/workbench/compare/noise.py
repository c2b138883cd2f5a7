"""Which differences between methods are more than noise, and so which methods are the best. Pure functions."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paca.workbench.base.change import IMPROVED, change
from paca.workbench.compare.columns import COLUMNS, Column
from paca.workbench.methods.catalogue import FLOORS

Row = Mapping[str, Any]
_ERRORS = 2.0  # standard errors that a difference has to exceed
_LOSS = next(column for column in COLUMNS if column.key == "loss")


def standard_error(values: Sequence[float]) -> float | None:
    """Estimate how far the mean of a few seeds' values is from that of many; None for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def relative_error(times: Row) -> float:
    """One standard error of a method's step time, as a share of it."""
    return float(times["to_floor_error"] / times["to_floor"])


def apart(column: Column, one: Row, other: Row, noise: float | None = None) -> bool:
    """Whether two methods differ in a column by more than noise.

    They don't where their cells look alike, where the difference is within two standard errors, where only one seed
    was run of what differs between seeds, and where two times are closer than the floor's two timings.

    Both rows have a value there; `noise` is the floor's second timing over its first, where there are both.
    """
    values = [row[column.key] for row in (one, other)]
    errors = [row.get(column.error, 0.0) if column.error else 0.0 for row in (one, other)]
    if None in errors or column.format(values[0]) == column.format(values[1]):
        return False
    within = _ERRORS * math.hypot(*errors)
    if column.timed and noise is not None:
        within = max(within, abs(noise - 1) * min(values))
    return bool(abs(values[0] - values[1]) > within)


def best(rows: Iterable[Row], noise: float | None = None) -> dict[str, list[str]]:
    """Find the best methods of each column in which methods differ by more than noise.

    Args:
        rows: Of all methods; the floor takes no part.
        noise: As for `apart`.

    Returns:
        By column in which at least two have a value: the method with the best one, and those that can't be told from
        it; none where that would be all of them, or the best has learned nothing.
    """
    found = {}
    rows = [row for row in rows if row["method"] not in FLOORS]
    for column in COLUMNS:
        if column.best is None:
            continue
        values = [row for row in rows if _is_number(row.get(column.key))]
        able = [row for row in values if not column.learnt or _learned(row)]
        if len(values) < 2:
            continue
        ordered = sorted(able, key=lambda row: row[column.key], reverse=column.best is max)
        level = [row for row in ordered if row is ordered[0] or not apart(column, ordered[0], row, noise)]
        found[column.key] = [row["method"] for row in level] if len(level) < len(values) else []
    return found


def _learned(row: Row) -> bool:
    """Whether training has lowered a method's loss at all; where none was measured before, it has."""
    before = row.get("loss_before")
    return before is None or change(before, row["loss"], ".4f") == IMPROVED


def pareto(rows: Iterable[Row], cost: str = "peak_bytes") -> list[str]:
    """Find the methods that no other beats in both a cost and held-out loss.

    Rows that lack either are passed over; names are ordered from the lowest cost to the highest. A loss that is lower
    by no more than noise is not worth a higher cost; of one seed, every difference counts.

    Args:
        rows: Of the methods.
        cost: The key of what should be low as well: `peak_bytes`, say.

    Returns:
        Their names.
    """
    points = [row for row in rows if _is_number(row.get("loss")) and _is_number(row.get(cost))]
    front: list[Row] = []
    for row in sorted(points, key=lambda row: (row[cost], row["loss"])):
        if not front or (row["loss"] < front[-1]["loss"] and _more_than_noise(row, front[-1])):
            front.append(row)
    return [row["method"] for row in front]


def _more_than_noise(one: Row, other: Row) -> bool:
    single_seed = None in (one.get("loss_error", 0.0), other.get("loss_error", 0.0))
    return single_seed or apart(_LOSS, one, other)


def margin(error: float | None) -> float | None:
    """How far from a mean its error bar reaches: as far as `apart` takes for noise; None of a single seed."""
    return None if error is None else _ERRORS * error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
