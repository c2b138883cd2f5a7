"""Experiments that fill the memory: the longest sequence, and throughput as the batch grows. Real steps, measured."""

import math
from typing import Any

import torch
from torch import UntypedStorage

from paca.profiling import StorageTracker
from paca.profiling.steps import TrainingStep, interleave, lower_quartile
from paca.workbench.base.search import largest_that_fits
from paca.workbench.compare.failures import OutOfMemoryError, is_out_of_memory
from paca.workbench.compare.units import Unit, Watch
from paca.workbench.compare.workload import Workload

SEQUENCE_STEP = 32
_LARGEST_BATCH = 4096


class LimitedTracker(StorageTracker):
    """Counts live bytes, and stops what allocates more than a limit before the machine runs out of memory."""

    def __init__(self, step: TrainingStep, limit: int) -> None:
        self._limit: int | None = None
        super().__init__(step.held())
        self._limit = limit

    def _count(self, storage: UntypedStorage) -> None:
        super()._count(storage)
        if self._limit is not None and self._live_bytes > self._limit:
            raise OutOfMemoryError(f"more than {self._limit / 1e9:.2f} GB")


def fits(workload: Workload, unit: Unit, size: tuple[int, int], needed: dict[str, int]) -> bool:
    """Whether two training steps of this many sequences and tokens stay within the unit's limit of bytes.

    The second step has the optimizer's state; the peak is put into `needed`, by `str(size)`.
    """
    try:
        step = workload.step(unit.entry, share=True, size=size)
        with LimitedTracker(step, unit.values["limit"]):
            step.run()
        with LimitedTracker(step, unit.values["limit"]) as tracker:
            step.run()
    except (RuntimeError, MemoryError, OutOfMemoryError) as error:
        if is_out_of_memory(error):
            return False
        raise
    needed[f"{size[0]} x {size[1]}"] = tracker.peak_bytes
    return True


def longest_sequence(workload: Workload, unit: Unit, watch: Watch) -> dict[str, Any]:
    """Find the longest sequence, one per step, with which training stays within the unit's `limit`, in bytes.

    The result has `tokens`, 0 if not even the shortest fits; whether these are all that the model has positions for;
    and the peaks by size.
    """
    positions = getattr(workload.base(unit.entry.method).config, "max_position_embeddings", None) or 2**20
    needed: dict[str, int] = {}

    def excess(tokens: int) -> float:
        watch(tokens, positions, f"{tokens} tokens")
        return -math.inf if fits(workload, unit, (1, tokens), needed) else math.inf

    tokens = largest_that_fits(excess, SEQUENCE_STEP, positions)
    all_positions = tokens == positions // SEQUENCE_STEP * SEQUENCE_STEP
    return {"tokens": tokens, "all_positions": all_positions, "peak_bytes": needed, "limit": unit.values["limit"]}


def throughput(workload: Workload, unit: Unit, watch: Watch) -> dict[str, Any]:
    """Double the batch until memory is full, and time steps at each size; last at the largest batch that fits.

    The unit has `limit`, bytes; `rounds`, timed steps at each size; and `tokens` per sequence. The result has, for
    each batch that fits, `sequences`, `peak_bytes`, `step_ms`, `tokens_per_second` and `sequences_per_second`.
    """
    tokens, needed = unit.values["tokens"], dict[str, int]()

    def excess(sequences: int) -> float:
        watch(sequences, _LARGEST_BATCH, f"{sequences} sequences")
        return -math.inf if fits(workload, unit, (sequences, tokens), needed) else math.inf

    most = largest_that_fits(excess, 1, _LARGEST_BATCH)
    doubled = [2**power for power in range(13) if 2**power < most]
    points: list[dict[str, Any]] = []
    for sequences in [*doubled, *([most] if most else [])]:
        watch(len(points), len(doubled) + 1, f"timing {sequences} sequences")
        step = workload.step(unit.entry, share=True, size=(sequences, tokens))
        step.run()
        times = interleave({"": step.run}, unit.values["rounds"])[""]
        seconds = lower_quartile([taken.total for taken in times])
        points.append(
            {
                "sequences": sequences,
                "peak_bytes": needed.get(f"{sequences} x {tokens}"),
                "step_ms": 1000 * seconds,
                "sequences_per_second": sequences / seconds,
                "tokens_per_second": sequences * tokens / seconds,
            }
        )
    return {"points": points, "tokens": tokens, "limit": unit.values["limit"]}


def available_bytes() -> int:
    """Bytes that this process may use when no limit is given: the GPU's memory, or most of what is free now."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return int(0.8 * psutil.virtual_memory().available)
