"""Turns `budget`, how many values are to be trained in all, into the rank that spends it."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors import PacaError
from ..config import PacaConfig
from ..layers.experts import expert_parameters
from ..layers.kinds import layer_kind
from ..layers.quantized import QuantizedLinear, unpacked_sizes
from .checks import base_of, connections
from .experts import expert_connections

logger = logging.getLogger(__name__)


def spend_budget(
    budget: float, model: nn.Module, config: PacaConfig, targets: Mapping[str, nn.Module], experts: list[str]
) -> None:
    """Give a configuration the rank at which its layers train as many values, or as many as fit.

    All layers get one rank; those with fewer connections train all they have. What is left of the budget is less than
    one further run of connections in each of the other layers.

    Args:
        budget: A number of values, or a share of the model's below 1.
        model: The base model.
        config: The configuration; gets a rank in place of the budget, so that its file says what was trained.
        targets: The layers to adapt, each of a kind that can be.
        experts: The names of the expert weights to adapt.

    Raises:
        PacaError: If the budget is too small for one connection per layer, or is more than all of them.
    """
    sizes = [_size(module) for module in targets.values()]
    parameters = expert_parameters(model)
    for name in experts:
        count = expert_connections(model, name, parameters[name])
        sizes.append((count, parameters[name].numel() // count))
    step = config.run_length
    sizes = [(count // step * step, length) for count, length in sizes]
    asked, values = f"budget={budget!r}", budget
    if budget < 1:
        whole = sum(size for name, size in unpacked_sizes(model).items() if "paca_" not in name)
        values = int(budget * whole)
        asked += f" ({values:,} of the model's {whole:,} values)"

    def spent(rank: int) -> int:
        return sum(length * min(rank, count) for count, length in sizes)

    ranks = range(step, max((count for count, _ in sizes), default=0) + 1, step)
    if not ranks:
        return  # what is wrong with such layers is told of every configuration
    each = "one connection" if step == 1 else f"one run of {step} connections"
    if values < spent(step):
        raise PacaError(
            f"{asked} is too small: {each} in each of the {len(sizes)} layers is {spent(step):,} values. Pass "
            f"budget={spent(step)} or more, or adapt fewer layers."
        )
    if values > spent(ranks[-1]):
        raise PacaError(
            f"{asked} is too large: all connections of the {len(sizes)} layers are {spent(ranks[-1]):,} values. Pass "
            f"budget={spent(ranks[-1])} or less, or adapt more layers."
        )
    config.r = ranks[bisect.bisect_right(ranks, values, key=spent) - 1]
    config.budget = None
    config.clamp_rank = config.clamp_rank or any(count < config.r for count, _ in sizes)
    if config.paca_alpha is None:
        config.paca_alpha = config.r
    logger.info("%s: rank %d in %d layers, %s values", asked, config.r, len(sizes), f"{spent(config.r):,}")


def _size(module: nn.Module) -> tuple[int, int]:
    """How many connections a layer has, and how many values each of them."""
    base = base_of(module)
    kind: Any = layer_kind(base)
    count = connections(module)
    if issubclass(kind.layer_class, QuantizedLinear):
        return count, base.out_features
    return count, base._parameters[kind.layer_class.weight_name].numel() // count
