"""From the units of a comparison to one row per method. Pure functions."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paca.workbench.compare.noise import best, pareto, relative_error, standard_error
from paca.workbench.compare.units import FLOOR_AGAIN, LONGEST, OPERATIONS, PROFILE, RUN, SWEEP, THROUGHPUT, TIMING
from paca.workbench.methods.catalogue import FLOOR, FLOORS

Row = dict[str, Any]


def summarize(units: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the units of a comparison up.

    Args:
        units: `job` and `result` of each.

    Returns:
        `methods`, one row each, the floor first; `noise`, the floor's second timing over its first; `pareto`, the
        methods that no other beats in both peak memory and held-out loss; `best`, by column, empty where all are
        within noise; `machine`, on which the steps were timed, None if they were not.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for unit in units:
        by_kind[unit["job"]["kind"]].append(unit)
    labels = _labels(by_kind)
    rows = {label: _row(label, by_kind) for label in labels}
    timing = by_kind[TIMING][0]["result"] if by_kind[TIMING] else {}
    for label, times in timing.get("methods", {}).items():
        if label in rows:
            relative = relative_error(times)
            errors = {f"{key}_error": relative * times[key] for key in ("step_ms", "tokens_per_second")}
            rows[label].update({**times, **errors})
    floors = [timing.get("methods", {}).get(name) for name in (FLOOR, FLOOR_AGAIN)]
    noise = floors[1]["to_floor"] / floors[0]["to_floor"] if all(floors) else None
    found = list(rows.values())
    return {
        "methods": found,
        "noise": noise,
        "pareto": pareto([row for row in found if row["method"] not in FLOORS]),
        "best": best(found, noise),
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
    return sorted(labels, key=lambda label: label not in FLOORS)


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
    losses = [point["loss"] for point in last]
    accuracies = [point["accuracy"] for point in last]
    forgotten = [result["unrelated"]["after"] - result["unrelated"]["before"] for result in results]
    row: Row = {
        "rate": units[0]["job"]["rate"],
        "steps": results[0]["steps"] if "pace" in units[0]["job"] else None,
        "seeds": [unit["job"]["seed"] for unit in units],
        "losses": losses,
        "loss": statistics.fmean(losses),
        "loss_spread": statistics.stdev(losses) if len(losses) > 1 else None,
        "loss_error": standard_error(losses),
        "loss_before": results[0]["curve"][0]["loss"],
        "accuracy": statistics.fmean(accuracies),
        "accuracy_error": standard_error(accuracies),
        "forgotten": statistics.fmean(forgotten),
        "forgotten_error": standard_error(forgotten),
        "file_bytes": results[0]["file_bytes"],
        "curves": [result["curve"] for result in results],
        "training_losses": [result["training_loss"] for result in results],
        "train_seconds": statistics.median(result["train_seconds"] for result in results),
        "merge_error": results[0].get("merge_error"),
    }
    for key in ("latency_ms", "merge_ms", "merged_latency_ms", "merged_differs"):
        values = [result[key] for result in results if key in result]
        row |= {key: statistics.median(values)} if values else {}
    return row
