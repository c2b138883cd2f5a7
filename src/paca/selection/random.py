"""Random selection, the paper's default: every connection is equally likely."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def layer_seed(random_seed: int | None, name: str) -> int | None:
    """One seed per layer, from the adapter's seed and the layer's name.

    So layers of the same shape get different connections, and each gets the same ones on every machine and in
    whatever order the layers are visited. PEFT 0.22 derives its seeds by the same rule.

    Args:
        random_seed: The adapter's seed, or None.
        name: The layer's name within the base model.

    Returns:
        The layer's seed, or None without an adapter's seed.
    """
    if random_seed is None:
        return None
    return (random_seed + zlib.crc32(name.encode())) % 2**63


def random_connections(connections: int, r: int, seed: int | None = None) -> Tensor:
    """`r` of the layer's connections, without replacement.

    Args:
        connections: How many the layer has.
        r: How many to choose.
        seed: Seed of a generator of its own; None draws from torch's global generator.

    Returns:
        Their indices, ascending, shape `(r,)`, int64, on the CPU.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    chosen = torch.randperm(connections, generator=generator, device="cpu")[:r]
    return chosen.sort().values
