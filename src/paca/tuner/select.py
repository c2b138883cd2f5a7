"""Choosing the connections of all layers of a model, by the strategy that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import PacaError
from .selection.choose import largest
from .selection.facts import LayerFacts
from .selection.given import given_for, read_given
from .selection.groups import group_layers, same_input_groups
from .selection.random import layer_seed
from .selection.registry import INDICES, find_strategy, scores_of

if TYPE_CHECKING:
    from .config import PacaConfig

Scores = Mapping[str, Tensor]


def is_plain_random(config: PacaConfig) -> bool:
    """Whether each layer draws single connections for itself, which it does as it is made.

    Args:
        config: The configuration.

    Returns:
        Whether there is nothing else to do.
    """
    return config.selection == "random" and config.run_length == 1 and not config.aligned


def layer_scores(config: PacaConfig, layers: Mapping[str, Any], statistics: Scores | None = None) -> dict[str, Tensor]:
    """The scores of every layer's connections.

    Args:
        config: Names the strategy.
        layers: The adapted layers by their name in the base model.
        statistics: What was measured, by layer, for a strategy that needs data.

    Returns:
        Shape `(in,)` each, by name.

    Raises:
        PacaError: If a strategy's answer makes no sense, or a weight cannot be read.
    """
    strategy = find_strategy(config.selection)
    scores = {}
    for name, layer in layers.items():
        facts = LayerFacts(
            name=name,
            connections=layer.in_features,
            seed=layer_seed(config.random_seed, name),
            columns=_columns_of(name, layer, config.selection),
            statistic=None if statistics is None else statistics[name],
        )
        scores[name] = scores_of(strategy, facts)
    return scores


def _columns_of(name: str, layer: Any, selection: str) -> Any:
    def columns() -> Tensor:
        if layer.weight_device().type == "meta":
            raise PacaError(
                f"selection={selection!r} reads the weights, but that of {name} is on the meta device: load the base "
                "model's weights before get_peft_model."
            )
        return layer.columns.pretrained_columns(torch.arange(layer.in_features))

    return columns


def choose(
    config: PacaConfig, scores: Scores, ranks: Mapping[str, int], taken: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The connections with the largest scores; layers that share an index set add theirs up.

    Args:
        config: Says in which runs, and which layers share.
        scores: By layer, shape `(in,)` each.
        ranks: How many connections, by layer.
        taken: Connections that are not chosen while there are others, by layer.

    Returns:
        Indices by layer, ascending, shape `(r,)` each.
    """
    chosen = {}
    for group in group_layers(scores, same_input_groups(config.aligned)):
        total = sum((scores[name] for name in group[1:]), start=scores[group[0]])
        used = None if taken is None else torch.cat([taken[name].cpu() for name in group]).unique()
        indices = largest(total, ranks[group[0]], config.run_length, used)
        chosen.update({name: indices.clone() for name in group})
    return chosen


def given_connections(config: PacaConfig, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The connections that the configuration lists.

    Args:
        config: With `selection="indices"`, checked.
        layers: The adapted layers by name.

    Returns:
        Indices by layer, ascending.
    """
    given = read_given(config.selection_indices or {})
    return {name: torch.tensor(sorted(given_for(given, name) or ()), dtype=torch.int64) for name in layers}


def select_without_data(config: PacaConfig, layers: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """The connections by a strategy that needs no data.

    Args:
        config: Names it.
        layers: The adapted layers by name.
        ranks: How many connections, by layer.

    Returns:
        Indices by layer, ascending.
    """
    if config.selection == INDICES:
        return given_connections(config, layers)
    return choose(config, layer_scores(config, layers), ranks)
