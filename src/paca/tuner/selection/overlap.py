"""How much two selections have in common, beside what chance alone would give."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Chosen = Mapping[str, Tensor]


def overlap(first: Chosen, second: Chosen) -> float:
    """The share of the first selection's connections that the second has chosen as well, over all layers.

    Args:
        first: Indices by layer, shape `(r,)` each.
        second: Likewise, of the same layers.

    Returns:
        Between 0 and 1.
    """
    common = sum(int(torch.isin(indices, second[name]).sum()) for name, indices in first.items())
    return common / sum(len(indices) for indices in first.values())


def overlap_by_chance(chosen: Chosen, sizes: Mapping[str, int]) -> float:
    """The overlap with a random selection of as many connections, `Σ r²/in / Σ r`.

    Args:
        chosen: Indices by layer.
        sizes: How many connections each layer has.

    Returns:
        Between 0 and 1.
    """
    expected = sum(len(indices) ** 2 / sizes[name] for name, indices in chosen.items())
    return expected / sum(len(indices) for indices in chosen.values())
