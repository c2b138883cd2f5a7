"""Units that train nothing for good: memory of a step, its time next to others', its operations, and ranks."""

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from paca.profiling.environment import machine
from paca.profiling.operations import OperationCounter
from paca.profiling.steps import StepTime, TrainingStep, interleave, quartiles
from paca.workbench.base.search import largest_that_fits
from paca.workbench.compare.choice import Entry
from paca.workbench.compare.failures import OutOfMemoryError, is_out_of_memory
from paca.workbench.compare.units import FLOOR_AGAIN, MEMORY, Unit, Watch
from paca.workbench.compare.workload import Workload
from paca.workbench.training.report import count_parameters

_WARM_UP_STEPS = 2
_LARGEST_RANK = 4096


def profile(workload: Workload, unit: Unit, watch: Watch) -> dict[str, Any]:
    """Count the bytes of a training step, and what is trained.

    The unit has `limit`, bytes that a step may need, or None; a step that needs more is an `OutOfMemoryError`.
    """
    step = workload.step(unit.entry)
    step.run()
    watch(1, 2, "counting bytes")
    peak = step.peak()
    limit = unit.values["limit"]
    if limit is not None and peak.total > limit:
        raise OutOfMemoryError(f"a step needs {peak.total / 1e9:.2f} GB, the limit is {limit / 1e9:.2f} GB")
    model: Any = step.model
    parameters = count_parameters(model)
    spent = "budget" in unit.entry.setting.arguments
    return {
        **({"rank": model.peft_config[model.active_adapter].r} if spent else {}),
        "kept_bytes": step.kept_bytes(),
        "peak_bytes": peak.total,
        "peak_by_kind": peak.by_category,
        "peak_phase": peak.phase,
        "trained_parameters": parameters.trained,
        "total_parameters": parameters.total,
        "batch": list(step.batch["labels"].shape),
    }


def time_steps(workload: Workload, unit: Unit, watch: Watch) -> dict[str, Any]:
    """Time the steps of several methods in turns, the floor twice.

    Where not all fit into memory together, they are timed in groups, each with the floor. The unit has all methods,
    the floor first, and `rounds`; the result, by method, milliseconds by phase, the ratio to the floor of its own
    group, tokens per second and each step, and what machine it was.
    """
    floor, *others = unit.entries
    found: dict[str, Any] = {}

    def time_group(entries: list[Entry]) -> None:
        try:
            measured = _time_group(workload, floor, entries, unit.values["rounds"], watch)
        except (RuntimeError, MemoryError) as error:
            if len(entries) < 2 or not is_out_of_memory(error):
                raise
        else:
            found.update({name: row for name, row in measured.items() if name not in found})
            return
        time_group(entries[: len(entries) // 2])
        time_group(entries[len(entries) // 2 :])

    time_group(others)
    device = workload.arguments(workload.recipe.seed).device
    return {"methods": found, "rounds": unit.values["rounds"], "machine": machine(device)}


def _time_group(workload: Workload, floor: Entry, others: list[Entry], rounds: int, watch: Watch) -> dict[str, Any]:
    steps: dict[str, TrainingStep] = {}
    for name, entry in [(floor.label, floor), (FLOOR_AGAIN, floor), *((entry.label, entry) for entry in others)]:
        watch(0, rounds, f"preparing {name}")
        steps[name] = workload.step(entry, share=True)
        for _ in range(_WARM_UP_STEPS):
            steps[name].run()
    tokens = steps[floor.label].batch["labels"].numel()
    times = interleave(
        {name: step.run for name, step in steps.items()}, rounds, lambda done: watch(done, rounds, "timing")
    )
    totals = {name: [step.total for step in taken] for name, taken in times.items()}
    floors = list(zip(totals[floor.label], totals[FLOOR_AGAIN], strict=True))
    rows = {name: _phases(taken) for name, taken in times.items()}
    return {
        name: row
        | {
            **_to_floor(totals[name], floors),
            "tokens_per_second": 1000 * tokens / row["step_ms"],
            "steps_ms": [1000 * total for total in totals[name]],
        }
        for name, row in rows.items()
    }


def _to_floor(times: Sequence[float], floors: Sequence[Sequence[float]]) -> dict[str, float]:
    ratios = paired_ratios(times, floors)
    return {"to_floor": statistics.median(ratios), "to_floor_error": error_of_median(ratios)}


def paired_ratios(times: Sequence[float], references: Sequence[Sequence[float]]) -> list[float]:
    """Divide each time by the mean of its round's references, so that a slow spell of the machine cancels."""
    return [time / statistics.fmean(same) for time, same in zip(times, references, strict=True)]


def error_of_median(values: Sequence[float]) -> float:
    """Estimate how far the median of a few values may be from that of many: `1.253 · 1.483 · MAD / √n`.

    The median's standard error for normal noise, whose width is taken from the median absolute deviation (MAD), so
    that single slow rounds do not count.

    Args:
        values: At least one.

    Returns:
        One standard error, in the unit of the values.
    """
    middle = statistics.median(values)
    width = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return math.sqrt(math.pi / 2) * width / math.sqrt(len(values))


def _phases(times: list[StepTime]) -> dict[str, float]:
    return {f"{'step' if part == 'total' else part}_ms": 1000 * found for part, found in quartiles(times).items()}


def operations(workload: Workload, unit: Unit, watch: Watch) -> dict[str, Any]:
    """Count the floating-point operations of a step; nothing is timed, since that takes methods in turns."""
    step = workload.step(unit.entry)
    watch(0, 1, "counting operations")
    with OperationCounter(lambda: "forward") as forward:
        loss = step.loss()
    with OperationCounter(lambda: "backward") as backward:
        loss.backward()
    return {**forward.by_phase, **backward.by_phase}


def match_ranks(workload: Workload, unit: Unit, watch: Watch) -> dict[str, Any]:
    """Find for each method the rank at which it costs as much as the first one does.

    That is the one at which it trains most nearly as many parameters, or, where the unit has `by` = `memory`, the
    largest whose steps peak no higher: 1 where no rank's do. A method whose rank is given keeps it; one that can't be
    built is left out, and fails when it is measured.
    """
    reference, *others = unit.entries
    by_memory = unit.values.get("by") == MEMORY
    cost = peak_bytes if by_memory else trained_parameters
    wanted = cost(workload, reference, reference.setting.rank)
    found = {reference.label: {"rank": reference.setting.rank, "cost": wanted}}
    for done, entry in enumerate(others):
        watch(done, len(others), f"rank of {entry.label}")
        cost_at = functools.cache(functools.partial(cost, workload, entry))
        try:
            if not _has_rank(entry):
                rank = entry.setting.rank
            elif by_memory:
                rank = max(1, largest_that_fits(functools.partial(_excess, cost_at, wanted), 1, _LARGEST_RANK))
            else:
                rank = nearest_rank(wanted, cost_at)
            found[entry.label] = {"rank": rank, "cost": cost_at(rank)}
        except (ValueError, RuntimeError, NotImplementedError, TypeError):
            continue
    return {"ranks": found}


def _excess(cost: Callable[[int], int], wanted: int, rank: int) -> float:
    """By how much a rank costs more than is wanted; without end where some layer has no such rank."""
    try:
        return cost(rank) - wanted
    except ValueError:
        if rank == 1:
            raise
        return math.inf


def peak_bytes(workload: Workload, entry: Entry, rank: int) -> int:
    """Count the live bytes at the peak of a real step of a method at a rank."""
    step = workload.step(replace(entry, setting=replace(entry.setting, rank=rank)))
    step.run()
    return step.peak().total


def _has_rank(entry: Entry) -> bool:
    config = entry.method.config(entry.setting)
    return config is not None and hasattr(config, "r") and not {"r", "budget"} & entry.setting.arguments.keys()


def trained_parameters(workload: Workload, entry: Entry, rank: int) -> int:
    """Count the values that a method trains at a rank, on a model without memory."""
    from transformers import AutoModelForCausalLM

    configuration = workload.base(replace(entry.method, quantization=None)).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration)
        model = entry.method.put_on(model, replace(entry.setting.anywhere(), rank=rank))
    return count_parameters(model).trained


def nearest_rank(wanted: int, count: Callable[[int], int], most: int = _LARGEST_RANK) -> int:
    """Find the rank, up to `most`, whose count of parameters is nearest to `wanted`; of two, the lower.

    A higher rank must not count less.
    """
    count = functools.cache(count)
    low = max(1, largest_that_fits(lambda rank: count(rank) - wanted, 1, most - 1))
    return min((low, low + 1), key=lambda rank: (abs(count(rank) - wanted), rank))
