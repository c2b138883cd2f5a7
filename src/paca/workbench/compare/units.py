"""The units of a comparison: what is measured in one go, stored as one file, and lost at most when it is killed."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from paca.workbench.compare.choice import Entry

RANKS, PROFILE, SWEEP, RUN, TIMING = "ranks", "profile", "sweep", "run", "timing"
THROUGHPUT, LONGEST, OPERATIONS = "throughput", "max-seq", "operations"
PARAMETERS, RANK, MEMORY, TIME = "parameters", "rank", "memory", "time"  # what methods are alike in
FLOOR_AGAIN = "frozen again"  # timed twice: how far apart the two are is the noise

_TITLES = {
    RANKS: "ranks",
    PROFILE: "{method}: memory",
    SWEEP: "{method}: learning rate {rate:g}",
    RUN: "{method}: seed {seed}",
    TIMING: "step times",
    THROUGHPUT: "{method}: throughput",
    LONGEST: "{method}: longest sequence",
    OPERATIONS: "{method}: operations",
}
Watch = Callable[[int, int, str], None]  # told how much is done, of how much, and what is going on


@dataclass(frozen=True)
class Unit:
    """One unit.

    Args:
        kind: What is measured: a name in `paca.workbench.compare.worker.KINDS`.
        entries: The methods; one, but where several have to be measured in one process.
        values: What else it depends on, such as the seed and the learning rate; JSON can write it.
    """

    kind: str
    entries: tuple[Entry, ...]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """Its only method."""
        return self.entries[0]

    @property
    def name(self) -> str:
        """The name of its file, without suffix."""
        words = [self.kind] + ([self.entry.label] if len(self.entries) == 1 else [])
        words += [f"{key}{self.values[key]}" for key in ("seed", "rate") if key in self.values and self.kind != RUN]
        words += [f"seed{self.values['seed']}"] if self.kind == RUN else []
        return "--".join(re.sub(r"[^\w.=+-]+", "_", word).strip("_") for word in words)

    @property
    def title(self) -> str:
        """What a person is told of it."""
        method = self.entry.label if len(self.entries) == 1 else ""
        return _TITLES[self.kind].format(method=method, **self.values)

    def identity(self) -> dict[str, Any]:
        """What its result depends on besides the recipe, for JSON."""
        return {"kind": self.kind, "methods": [entry.identity() for entry in self.entries], **self.values}
