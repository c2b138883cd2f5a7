"""From one score per connection to the connections: the largest, in runs if wanted."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(scores: Tensor, r: int, run_length: int = 1, taken: Tensor | None = None) -> Tensor:
    """The `r` connections with the largest scores, in contiguous runs with the largest sums.

    Runs start at multiples of `run_length`, as cache lines and memory sectors do; connections behind the last whole
    run are not chosen. Of equal scores the first wins.

    Args:
        scores: Shape `(in,)`.
        r: How many, a multiple of `run_length`.
        run_length: Connections per run.
        taken: Connections not to choose while there are others, shape `(n,)`. If they have to be, all of them have
            the same chance again, save those chosen already.

    Returns:
        Indices, ascending, shape `(r,)`, int64, on the CPU.
    """
    runs = len(scores) // run_length
    totals = scores[: runs * run_length].double().cpu().view(runs, run_length).sum(1)
    order = torch.sort(totals, descending=True, stable=True).indices
    if taken is not None and len(taken):
        touched = torch.zeros(runs * run_length + run_length, dtype=torch.bool)
        touched[taken.cpu()] = True
        touched = touched[: runs * run_length].view(runs, run_length).any(1)
        order = torch.cat([order[~touched[order]], order[touched[order]]])
    starts = order[: r // run_length] * run_length
    return (starts[:, None] + torch.arange(run_length)).flatten().sort().values
