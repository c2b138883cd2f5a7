"""The adapted layers of a model, and the rank and alpha that a configuration gives each."""

from __future__ import annotations

from torch import nn

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


def choosable_layers(model: nn.Module, adapter_name: str) -> dict[str, PacaLayer]:
    """`adapter_layers`, without those whose connections are all trained, so that there is nothing to choose."""
    found = adapter_layers(model, adapter_name)
    return {name: layer for name, layer in found.items() if not layer.trained_whole}


def shared_places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where the modules stand that have more than one place in the model, by their id."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((parent, name))
    return {key: found for key, found in places.items() if len(found) > 1}
