"""Which connections of a layer are trained."""

from .random import layer_seed, random_connections

__all__ = ["layer_seed", "random_connections"]
