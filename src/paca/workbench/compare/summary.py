"""From the units of a comparison to one row per method. Pure functions."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paca.workbench.compare.columns import COLUMNS
from paca.workbench.compare.units import FLOOR_AGAIN, LONGEST, OPERATIONS, PROFILE, RUN, SWEEP, THROUGHPUT, TIMING
from paca.workbench.methods.catalogue import FLOOR

Row = dict[str, Any]


def summarize(units: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the units of a comparison up.

    Args:
        units: `job` and `result` of each.

    Returns:
        `methods`, one row each, the floor first; `noise`, the floor's second timing over its first; `pareto`, the
        methods that no other beats in both peak memory and held-out loss; `best`, by column; `machine`, on which the
        steps were timed, None if they were not.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for unit in units:
        by_kind[unit["job"]["kind"]].append(unit)
    labels = _labels(by_kind)
    rows = {label: _row(label, by_kind) for label in labels}
    timing = by_kind[TIMING][0]["result"] if by_kind[TIMING] else {}
    for label, times in timing.get("methods", {}).items():
        if label in rows:
            rows[label].update(times)
    floors = [timing.get("methods", {}).get(name) for name in (FLOOR, FLOOR_AGAIN)]
    found = list(rows.values())
    return {
        "methods": found,
        "noise": floors[1]["to_floor"] / floors[0]["to_floor"] if all(floors) else None,
        "pareto": pareto([row for row in found if row["method"] != FLOOR]),
        "best": best(found),
        "machine": timing.get("machine"),
    }


def _labels(by_kind: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """All methods, the floor first and then in the order in which they were timed, if they were."""
    timed = [entry["method"] for unit in by_kind[TIMING] for entry in unit["job"]["methods"]]
    single = [
        unit["job"]["methods"][0]["method"]
        for kind in (PROFILE, RUN, THROUGHPUT, LONGEST, OPERATIONS)
        for unit in by_kind[kind]
    ]
    labels = list(dict.fromkeys([*timed, *single]))
    return sorted(labels, key=lambda label: label != FLOOR)


def _row(label: str, by_kind: Mapping[str, Sequence[Mapping[str, Any]]]) -> Row:
    row: Row = {"method": label, "error": None, "out_of_memory": False}
    own = {
        kind: [unit for unit in by_kind[kind] if unit["job"]["methods"][0]["method"] == label]
        for kind in (PROFILE, SWEEP, RUN, THROUGHPUT, LONGEST, OPERATIONS)
    }
    for unit in (unit for kind in own for unit in own[kind] if kind != SWEEP):
        row.setdefault("rank", unit["job"]["methods"][0]["rank"])
        if "error" in unit["result"]:
            row |= {key: unit["result"][key] for key in ("error", "out_of_memory")}
    for unit in own[PROFILE]:
        row |= {key: value for key, value in unit["result"].items() if key not in ("error", "out_of_memory")}
    row["sweep"] = [[unit["job"]["rate"], unit["result"].get("loss")] for unit in own[SWEEP]]
    row |= _learnt([unit for unit in own[RUN] if "error" not in unit["result"]])
    for kind in (THROUGHPUT, OPERATIONS, LONGEST):
        found = [unit["result"] for unit in own[kind] if "error" not in unit["result"]]
        row[kind] = found[0] if found else None
    row["max_tokens"] = row[LONGEST]["tokens"] if row[LONGEST] else None
    return row


def _learnt(units: Sequence[Mapping[str, Any]]) -> Row:
    """What the runs of a method's seeds have in common."""
    if not units:
        return {}
    results = [unit["result"] for unit in units]
    last = [result["curve"][-1] for result in results]
    row: Row = {
        "rate": units[0]["job"]["rate"],
        "seeds": [unit["job"]["seed"] for unit in units],
        "losses": [point["loss"] for point in last],
        "loss": statistics.fmean(point["loss"] for point in last),
        "loss_spread": statistics.stdev(point["loss"] for point in last) if len(last) > 1 else None,
        "loss_before": results[0]["curve"][0]["loss"],
        "accuracy": statistics.fmean(point["accuracy"] for point in last),
        "forgotten": statistics.fmean(
            result["unrelated"]["after"] - result["unrelated"]["before"] for result in results
        ),
        "file_bytes": results[0]["file_bytes"],
        "curves": [result["curve"] for result in results],
        "train_seconds": statistics.median(result["train_seconds"] for result in results),
        "merge_error": results[0].get("merge_error"),
    }
    for key in ("latency_ms", "merge_ms", "merged_latency_ms", "merged_differs"):
        values = [result[key] for result in results if key in result]
        row |= {key: statistics.median(values)} if values else {}
    return row


def pareto(rows: Iterable[Row]) -> list[str]:
    """Find the methods that no other beats in both peak memory and held-out loss.

    Rows that lack either are passed over; names are ordered from the least memory to the most.
    """
    points = [row for row in rows if _is_number(row.get("loss")) and _is_number(row.get("peak_bytes"))]
    front: list[Row] = []
    for row in sorted(points, key=lambda row: (row["peak_bytes"], row["loss"])):
        if not front or row["loss"] < front[-1]["loss"]:
            front.append(row)
    return [row["method"] for row in front]


def best(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Find the best methods of each column in which at least two have a value; those that tie, all of them."""
    found = {}
    learning = [row for row in rows if row["method"] != FLOOR]  # the floor takes no part
    for column in COLUMNS:
        values = {row["method"]: row[column.key] for row in learning if _is_number(row.get(column.key))}
        if column.best is not None and len(values) > 1:
            extreme = column.best(values.values())
            found[column.key] = [label for label, value in values.items() if value == extreme]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
