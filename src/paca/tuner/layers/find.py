"""The adapted layers of a model, and the rank and alpha that a configuration gives each."""

from __future__ import annotations

from peft.utils.other import get_pattern_key
from torch import nn

from ..config import PacaConfig
from .base import PacaLayer
from .experts import Experts

PEFT_PREFIX = "base_model.model."


def paca_layers(model: nn.Module) -> dict[str, PacaLayer]:
    """The adapted layers of a model by their names in it, without FSDP1's additions."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PacaLayer)}
    return {name.removeprefix("_fsdp_wrapped_module."): layer for name, layer in layers.items()}


def adapter_layers(model: nn.Module, adapter_name: str) -> dict[str, PacaLayer]:
    """The layers that have an adapter.

    Args:
        model: The base model, or one around it.
        adapter_name: The adapter.

    Returns:
        The layers, by the names that they, or their expert weights, have in the base model.
    """
    found = {}
    for name, layer in paca_layers(model).items():
        if adapter_name in layer.paca_delta:
            plain = name.removeprefix(PEFT_PREFIX).replace(".base_layer", "")
            found[f"{plain}.{layer.weight_name}" if isinstance(layer, Experts) else plain] = layer
    return found


def shared_places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where the modules stand that have more than one place in the model, by their id."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((parent, name))
    return {key: found for key, found in places.items() if len(found) > 1}


def rank_of(config: PacaConfig, name: str) -> int:
    """The rank of a layer: `rank_pattern`'s, or `r`."""
    return config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)


def whole_runs(config: PacaConfig, rank: int, connections: int) -> int:
    """The rank, capped at the whole runs of the layer where `clamp_rank` says so."""
    return min(rank, connections // config.run_length * config.run_length) if config.clamp_rank else rank


def alpha_of(config: PacaConfig, name: str) -> float:
    """The alpha of a layer: `alpha_pattern`'s, or `paca_alpha`, or `r`."""
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.paca_alpha)
    return config.r if alpha is None else alpha
