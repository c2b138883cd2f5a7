"""A weight, the columns of it, and updates to lend them with."""

import torch
from torch import nn

from paca.method.columns.resident import Columns
from paca.method.columns.update import ColumnUpdate

OUT, IN = 6, 10


def make(dtype=torch.float32, connection_dim=1):
    shape = (OUT, IN) if connection_dim == 1 else (IN, OUT)
    weight = nn.Parameter(torch.randn(shape).to(dtype), requires_grad=False)
    return weight, Columns(connection_dim, delta_dim=1)


def update(*indices, scaling=1.0, dtype=torch.float32):
    delta = nn.Parameter(torch.randn(OUT, len(indices)).to(dtype))
    return ColumnUpdate(torch.tensor(indices), delta, scaling)


def adapted(weight, updates, connection_dim=1):
    """What the weight has to hold, in the plainest arithmetic: float64, rounded once."""
    total = weight.detach().double().clone()
    for indices, delta, scaling, *_ in updates:
        change = scaling * delta.detach().double()
        total.index_add_(connection_dim, indices, change if connection_dim == 1 else change.t())
    return total.to(weight.dtype)
