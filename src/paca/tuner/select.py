"""Choosing the connections of all layers of an adapter, by the strategy that its configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import PacaError
from .config import PacaConfig
from .layers.base import PacaLayer
from .selection.choose import largest
from .selection.facts import LayerFacts
from .selection.given import given_for, read_given
from .selection.groups import group_layers, same_input_groups
from .selection.random import layer_seed
from .selection.registry import INDICES, find_strategy, scores_of

Layers = Mapping[str, PacaLayer]
Scores = Mapping[str, Tensor]


def needs_data(config: PacaConfig) -> bool:
    """Whether the strategy has to see data before it can choose."""
    return find_strategy(config.selection).data is not None


def is_plain_random(config: PacaConfig) -> bool:
    """Whether nothing is left to choose: each layer has sampled single connections for itself as it was made."""
    return config.selection == "random" and config.run_length == 1 and not config.aligned


def select(
    config: PacaConfig, layers: Layers, adapter_name: str, scores: Scores | None = None, visited: Scores | None = None
) -> dict[str, Tensor]:
    """The connections with the largest scores, or those that the configuration lists.

    Layers that share an index set add their scores up.

    Args:
        config: Names the strategy, says in which runs connections come, and which layers share.
        layers: The adapter's layers by their names in the base model.
        adapter_name: The adapter.
        scores: By layer, shape `(in,)` each; by default those of a strategy that needs no data.
        visited: By layer, connections to choose only where no others are left.

    Returns:
        Indices by layer, ascending, shape `(r,)` each.
    """
    if config.selection == INDICES:
        given = read_given(config.selection_indices or {})
        return {name: torch.tensor(sorted(given_for(given, name) or ()), dtype=torch.int64) for name in layers}
    scores = layer_scores(config, layers) if scores is None else scores
    chosen = {}
    for group in group_layers(layers, same_input_groups(config.aligned)):
        total = sum((scores[name] for name in group[1:]), start=scores[group[0]])
        last = None if visited is None else torch.cat([visited[name].cpu() for name in group]).unique()
        indices = largest(total, layers[group[0]].r[adapter_name], config.run_length, last)
        chosen.update({name: indices.clone() for name in group})
    return chosen


def layer_scores(config: PacaConfig, layers: Layers, statistics: Scores | None = None) -> dict[str, Tensor]:
    """The scores of every layer's connections.

    Args:
        config: Names the strategy.
        layers: The adapter's layers by their names in the base model.
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


def _columns_of(name: str, layer: PacaLayer, selection: str) -> Callable[[], Tensor]:
    def columns() -> Tensor:
        if layer.weight_device().type == "meta":
            raise PacaError(
                f"selection={selection!r} reads the weights, but that of {name} is on the meta device: load the base "
                "model's weights before get_peft_model."
            )
        return layer.pretrained_columns(torch.arange(layer.in_features))

    return columns
