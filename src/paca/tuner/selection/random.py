"""Random selection, the paper's default: every connection is equally likely."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from .facts import LayerFacts


def layer_seed(random_seed: int | None, name: str) -> int | None:
    """One seed per layer, from the adapter's seed and the layer's name.

    So layers of the same shape get different connections, and each gets the same ones on every machine and in
    whatever order the layers are visited. PEFT 0.22 derives its seeds by the same rule.

    Args:
        random_seed: The adapter's seed; None gives None.
        name: The layer's name within the base model.

    Returns:
        The layer's seed.
    """
    return None if random_seed is None else (random_seed + zlib.crc32(name.encode())) % 2**63


def random_order(connections: int, seed: int | None = None) -> Tensor:
    """A random order of a layer's connections; without a seed it is sampled from torch's global generator."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randperm(connections, generator=generator, device="cpu")


def random_connections(connections: int, r: int, seed: int | None = None) -> Tensor:
    """`r` of the layer's connections, without replacement.

    Args:
        connections: How many the layer has.
        r: How many to choose.
        seed: Seed of a generator of its own; None draws from torch's global generator.

    Returns:
        Their indices, ascending, shape `(r,)`, int64, on the CPU.
    """
    return random_order(connections, seed)[:r].sort().values


def random_scores(facts: LayerFacts) -> Tensor:
    """Places in a random order, shape `(in,)`: the `r` largest are the connections of `random_connections`."""
    # Sums of places are as random: all runs are equally likely, and all connections of layers that share an index set.
    scores = torch.empty(facts.connections, dtype=torch.float64)
    scores[random_order(facts.connections, facts.seed)] = torch.arange(facts.connections, 0, -1, dtype=torch.float64)
    return scores
