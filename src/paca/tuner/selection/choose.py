"""Choosing the connections with the largest scores, one by one or in contiguous runs."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(scores: Tensor, r: int, run_length: int = 1, visited: Tensor | None = None) -> Tensor:
    """The `r` connections with the largest scores, in contiguous runs with the largest sums.

    Runs start at multiples of `run_length`, as cache lines and memory sectors do; connections behind the last whole
    run are never chosen. Of equal scores the first wins.

    Args:
        scores: Shape `(in,)`.
        r: How many, a multiple of `run_length`.
        run_length: Connections per run.
        visited: Connections to choose only where no others are left, shape `(n,)`; by their scores then.

    Returns:
        Indices, ascending, shape `(r,)`, int64, on the CPU.
    """
    runs = len(scores) // run_length
    totals = scores[: runs * run_length].double().cpu().view(runs, run_length).sum(1)
    order = torch.sort(totals, descending=True, stable=True).indices
    if visited is not None and len(visited):
        last = torch.zeros(len(scores), dtype=torch.bool)
        last[visited.cpu()] = True
        last = last[: runs * run_length].view(runs, run_length).any(1)
        order = torch.cat([order[~last[order]], order[last[order]]])
    starts = order[: r // run_length] * run_length
    return (starts[:, None] + torch.arange(run_length)).flatten().sort().values
