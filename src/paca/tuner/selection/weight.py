"""Selection by the pretrained weight alone; the paper tried the largest columns."""

from __future__ import annotations

import torch
from torch import Tensor

from .facts import LayerFacts


def column_energies(columns: Tensor) -> Tensor:
    """The squared L2 norm of each column, `Σᵢ W[i, j]²`.

    Args:
        columns: Connections first, shape `(in, …)`.

    Returns:
        Shape `(in,)`, float64, on the CPU: summed widely, so that all machines agree on the order.
    """
    energies = [part.flatten(1).double().square().sum(1) for part in columns.split(256)]
    return torch.cat(energies).cpu()


def weight_scores(facts: LayerFacts) -> Tensor:
    """Large for a large L2 norm of the pretrained column; shape `(in,)`."""
    return column_energies(facts.columns())


def smallest_weight_scores(facts: LayerFacts) -> Tensor:
    """Large for a small L2 norm of the pretrained column; shape `(in,)`."""
    return -column_energies(facts.columns())
