"""What a selection strategy may know of a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerFacts:
    """What is known of one layer when its connections are chosen.

    Args:
        name: The layer's name within the base model.
        connections: How many connections it has, `in`.
        seed: The layer's own seed, or None.
        columns: Returns the pretrained columns, connections first: shape `(in, …)`.
        statistic: What the strategy's `data` has measured, shape `(in,)`; None for a strategy that needs no data.
    """

    name: str
    connections: int
    seed: int | None
    columns: Callable[[], Tensor]
    statistic: Tensor | None = None
