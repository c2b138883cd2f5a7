"""Gives a model on the meta device fake tensors on the CPU: it then runs as a real one does, and holds no memory."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paca.tuner.layers.bnb_weight import dequantized_4bit
from paca.tuner.layers.quantized import QuantizedLinear


def materialize_fake(model: nn.Module) -> None:
    """Replace a meta model's parameters and buffers by fake ones under a `FakeTensorMode`; tied ones stay tied.

    `Module.to` cannot do this: it swaps fake tensors in place, which modules that hold references forbid.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = _fake(parameter, made)  # type: ignore[assignment]
        for name in module._buffers:
            buffer = module._buffers[name]  # itself: a walk over them may give copies
            if buffer is not None:
                module._buffers[name] = _fake(buffer, made)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            # PEFT tells a packed weight by its class, which a fake one cannot have.
            weight: Any = module.base_layer.weight
            module.columns.dequantize = partial(dequantized_4bit, weight.data, weight.quant_state)


def _fake(tensor: Tensor, made: dict[int, Tensor]) -> Tensor:
    if id(tensor) not in made:
        empty: Any = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            state = getattr(tensor, "quant_state", None)
            if state is not None:
                empty.quant_state = _fake_state(state, made)
                empty.bnb_quantized = True
        made[id(tensor)] = empty
    return made[id(tensor)]


def _fake_state(state: Any, made: dict[int, Tensor]) -> Any:
    for name in ("absmax", "code", "offset"):
        if isinstance(getattr(state, name, None), Tensor):
            setattr(state, name, _fake(getattr(state, name), made))
    if getattr(state, "state2", None) is not None:
        _fake_state(state.state2, made)
    return state
