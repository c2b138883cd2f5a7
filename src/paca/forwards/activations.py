"""Which modules compute an elementwise function, and its derivative."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from ..method.functional.lean import GELU, GELU_TANH, SILU, Activation, activation_by_autograd

# transformers' and timm's elementwise functions lie in modules of their own, next to a few that hold parameters.
_HOMES = ("transformers.activations", "timm.layers.activations")
_NATIVE = (nn.SiLU, nn.GELU, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Mish, nn.ReLU6, nn.Hardswish)


def is_activation(module: nn.Module) -> bool:
    """Whether a module computes an elementwise function, and nothing else."""
    kind = type(module)
    return not list(module.parameters()) and (kind in _NATIVE or kind.__module__.startswith(_HOMES))


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after a module's forward, or stands in its place."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in module.__dict__ or any(getattr(module, name) for name in hooks)


def activation_of(module: nn.Module) -> Activation | None:
    """The function that a module computes, with its derivative; None where it is unknown, or where hooks watch it."""
    if has_hooks(module) or not is_activation(module):
        return None
    function: Any = getattr(module, "act", None)  # what transformers' GELUs call
    tanh = isinstance(function, partial) and function.func is F.gelu and function.keywords == {"approximate": "tanh"}
    if isinstance(module, nn.SiLU) or type(module).__name__ == "SiLUActivation":
        return SILU
    if function is F.gelu or (isinstance(module, nn.GELU) and module.approximate == "none"):
        return GELU
    if tanh or isinstance(module, nn.GELU):
        return GELU_TANH
    return activation_by_autograd(module)
