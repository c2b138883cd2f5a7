"""Which connections of a layer are trained."""

from .facts import LayerFacts
from .random import layer_seed, random_connections
from .registry import Strategy, find_strategy, register_selection, strategies

__all__ = [
    "LayerFacts",
    "Strategy",
    "find_strategy",
    "layer_seed",
    "random_connections",
    "register_selection",
    "strategies",
]
