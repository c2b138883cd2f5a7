"""One row of a plan: what a method takes, whether it fits, and how much would."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from paca.errors import PacaError
from paca.workbench.base.search import largest_that_fits
from paca.workbench.planning.gpus import Gpu
from paca.workbench.planning.methods import QUANTIZED
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner

SEQUENCE_STEP = 128
LONGEST, LARGEST = 2**20, 2**14


def make_rows(
    planner: Planner,
    settings: Sequence[TrainingSetting],
    gpu: Gpu | None,
    searches: tuple[str, ...] = (),
    said: Callable[[str], None] = lambda words: None,
) -> tuple[list[dict[str, Any]], list[PacaError]]:
    """Plan each method that can be; returns a row for each, and why the others can't. A PacaError if none can."""
    rows, refused = [], []
    for setting in settings:
        try:
            rows.append(make_row(planner, setting, gpu, searches, said))
        except PacaError as error:
            refused.append(error)
    if not rows:
        raise refused[0]
    return rows, refused


def make_row(
    planner: Planner,
    setting: TrainingSetting,
    gpu: Gpu | None,
    searches: tuple[str, ...] = (),
    said: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Plan one method; returns what JSON shows of it.

    `searches` has `max_seq`, `max_batch` or both: what to find the largest of. `said` is told what is done next,
    before each simulation.
    """
    said(setting.method)
    step = planner.step(setting)
    said(f"{setting.method}, operations")
    operations = planner.operations(setting, step)
    row: dict[str, Any] = {
        "method": setting.method,
        **asdict(step.peak),
        "paged": step.paged,
        "trained": step.trained,
        "uncalled": list(step.uncalled),
        "operations": {**asdict(operations), "total": operations.total},
    }
    if gpu is None:
        return row
    multiplied_in = torch.bfloat16 if setting.autocast else setting.dtype
    row["seconds_at_least"] = gpu.seconds_at_least(operations.total, multiplied_in)
    row["fits"] = step.peak.total <= gpu.bytes
    row["over"] = max(0, step.peak.total - gpu.bytes)

    def excess(**size: Any) -> int:
        said(f"{setting.method}, " + ", ".join(f"{name} {value:,}" for name, value in size.items()))
        return planner.step(replace(setting, **size)).peak.total - gpu.bytes

    if "max_seq" in searches:
        row["max_seq"] = largest_that_fits(lambda tokens: excess(tokens=tokens), SEQUENCE_STEP, LONGEST, 8)
    if "max_batch" in searches:
        row["max_batch"] = largest_that_fits(lambda batch: excess(batch=batch), 1, LARGEST, 8)
    return row


def advice(planner: Planner, setting: TrainingSetting, gpu: Gpu) -> str:
    """Find the smallest change that makes a setting fit into a GPU; each is simulated, not guessed."""
    words: list[str] = []
    peak = planner.step(setting).peak.total
    for word, change in _changes(setting, planner.images):
        changed = replace(setting, **change)
        lower = planner.step(changed).peak.total
        if lower < peak:
            setting, peak = changed, lower
            words.append(word)
        if peak <= gpu.bytes:
            return f"It fits with {' '.join(words)}: {peak / 2**30:.2f} GiB."
    tried = f"with {' '.join(words)}" if words else "with any change that is known"
    return f"It does not fit {tried} either: {peak / 2**30:.2f} GiB."


def _changes(setting: TrainingSetting, images: bool) -> list[tuple[str, dict[str, Any]]]:
    """What to try, from the least to the most; each keeps those before it that were of use."""
    packed = QUANTIZED.get(setting.method)
    half = setting.tokens // 2
    changes = (
        ("--checkpointing", {"checkpointing": True}, not setting.checkpointing),
        ("--loss chunked", {"loss": "chunked"}, setting.loss == "full" and not images),
        ("--batch 1", {"batch": 1}, setting.batch > 1),
        (f"--seq {half}", {"tokens": half}, half > 0 and not images),
        (f"--methods {packed}", {"method": packed}, packed is not None and not images and setting.fields is None),
        ("--methods paca", {"method": "paca"}, setting.method == "full"),
    )
    return [(word, change) for word, change, wanted in changes if wanted]
