"""Counts the operations of a training step: those of matrix products, convolutions and attention."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def _convolution_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    out_val: Any = None,
) -> int:
    """Each of the two gradients takes what the forward takes; torch's formula forgets groups in the weight's."""
    positions = (x if transposed else grad_out).shape[2:]
    forward = 2 * x.shape[0] * math.prod(positions) * weight.numel()
    return forward * (output_mask[0] + output_mask[1])


def _grouped_product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Products of groups of rows: of experts, each of which multiplies its own tokens; torch has no formula for it."""
    groups = len(a) if a.dim() == b.dim() == 3 else 1  # else the groups divide one of the sizes
    return 2 * groups * a.shape[-2] * a.shape[-1] * b.shape[-1]


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Queries times keys, and the scores times values; each head of keys and values serves one or more of queries."""
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """The scores once more, and the gradients of scores, queries, keys and values."""
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


# torch has formulas for the attention of GPUs only, and until 2.12 none for heads that share their keys.
_KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.convolution_backward: _convolution_backward,
    aten._grouped_mm: _grouped_product,
    **{getattr(aten, f"_scaled_dot_product_{kernel}"): _attention for kernel in _KERNELS},
    **{getattr(aten, f"_scaled_dot_product_{kernel}_backward"): _attention_backward for kernel in _KERNELS},
}


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one step; a multiplication and an addition are two.

    Args:
        forward: Of the forward pass.
        backward: Of the backward pass, without what is recomputed in it.
        recompute: Of forward passes run again in backward.
        optimizer: Of the optimizer's step, by its formula.
        adapter: How many of forward's and backward's the frozen model would not have needed to pass gradients on to
            the same layers: the adapter's own products, and the gradients of what is trained.
    """

    forward: int
    backward: int
    recompute: int
    optimizer: int
    adapter: int

    @property
    def total(self) -> int:
        """All of the step's."""
        return self.forward + self.backward + self.recompute + self.optimizer


class OperationCounter(TorchDispatchMode):
    """Counts operations inside a `with` block by the phase that `phase` names at that moment."""

    def __init__(self, phase: Callable[[], str]) -> None:
        super().__init__()
        self.by_phase: dict[str, int] = {}
        self._phase = phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator, and count its operations."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = _FORMULAS.get(func.overloadpacket) if isinstance(func, torch._ops.OpOverload) else None
        if formula is not None:
            count = formula(*args, **kwargs, out_val=result)
            phase = self._phase()
            self.by_phase[phase] = self.by_phase.get(phase, 0) + round(count * _done(func, args, kwargs))
        return result


def _done(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """The share of an operator's products that a kernel computes: under a causal mask, those on and below it."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
    if not given.get("is_causal"):
        return 1.0
    tokens = given["query"].shape[-2]
    return (tokens + 1) / (2 * tokens)


def start_gradients_at(model: nn.Module, names: Collection[str]) -> None:
    """Let the outputs of the named modules of a frozen model require gradients, as far down as a method needs them."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if name in names:
            module.register_forward_hook(_require_gradient)


def _require_gradient(module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and not output.requires_grad:
        output.requires_grad_(True)
