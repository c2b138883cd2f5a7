"""Calling a base layer's hooks around another computation than its forward."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

_OWN_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def call_in_place_of(base: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`forward(*args, **kwargs)`, with the hooks of `base` called before and after it.

    Another module with the same hooks runs it, so that nobody else who calls `base` meanwhile gets this forward.

    Args:
        base: The module whose hooks are meant.
        forward: What to compute in place of its forward.
        *args: The input.
        **kwargs: Likewise.

    Returns:
        What `forward` returns, or what a hook makes of it.
    """
    if not has_hooks(base):
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():
        return _traced(base, forward, *args, **kwargs)
    stand_in = base.__class__.__new__(base.__class__)
    stand_in.__dict__ = {**base.__dict__, "forward": forward}
    for name in _OWN_HOOKS:
        hooks = base.__dict__[name]
        stand_in.__dict__[name] = OrderedDict((key, _of(hook, base)) for key, hook in hooks.items())
    return stand_in(*args, **kwargs)


def _traced(base: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The same while it is compiled, which happens in one thread; a stand-in can't be traced."""
    base.__dict__["forward"] = forward  # as `base.forward = forward`, but its deletion can be compiled
    try:
        return base(*args, **kwargs)
    finally:
        del base.__dict__["forward"]


def _of(hook: Callable[..., Any], base: nn.Module) -> Callable[..., Any]:
    """The hook, told of the module that it was registered on."""
    return lambda _, *args, **kwargs: hook(base, *args, **kwargs)


def call_over(base: nn.Module, name: str, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A module's forward, hooks included, over another weight; nobody else who calls it meanwhile gets that.

    Args:
        base: The module.
        name: The parameter that is another one.
        weight: What takes its place.
        *args: The input.
        **kwargs: Likewise.

    Returns:
        What the module returns.
    """
    if "forward" in base.__dict__:  # a function of others, over this very module
        return torch.func.functional_call(base, {name: weight}, args, kwargs)
    # A parametrization has put a property into a class of its own.
    plain: Any = next(cls for cls in type(base).__mro__ if not isinstance(vars(cls).get(name), property))
    other = plain.__new__(plain)
    other.__dict__ = {**base.__dict__, "_parameters": {**base._parameters, name: weight}}
    other.__dict__.pop(name, None)  # where FSDP1 has put its parameters
    return call_in_place_of(base, other.forward, *args, **kwargs)


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after the module's forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    )
