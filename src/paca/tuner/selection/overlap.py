"""How much two selections have in common, and how much two random ones would."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Chosen = Mapping[str, Tensor]


def overlap(first: Chosen, second: Chosen) -> float:
    """The share, from 0 to 1, of the first selection's connections that the second has as well, over all layers."""
    common = sum(int(torch.isin(indices, second[name]).sum()) for name, indices in first.items())
    return common / sum(len(indices) for indices in first.values())


def overlap_by_chance(chosen: Chosen, sizes: Mapping[str, int]) -> float:
    """The overlap with a random selection of as many connections, `(Σ r²/in) / Σ r`; `sizes` has each layer's `in`."""
    expected = sum(len(indices) ** 2 / sizes[name] for name, indices in chosen.items())
    return expected / sum(len(indices) for indices in chosen.values())
