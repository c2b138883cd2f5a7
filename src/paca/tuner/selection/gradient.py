"""Selection by gradients, the paper's: accumulated over batches without an update, the largest columns chosen.

A layer's weight gradient `∇W = ∇Yᵀ X` is made in its backward pass, handed to an accumulator and dropped, so that no
two of them live at once. Two accumulators:

    sum    ‖Σ_b ∇W_b[:, j]‖²   exact; the sums of `(out, in)` are kept on the CPU
    norm   Σ_b ‖∇W_b[:, j]‖²   one number per column
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MODES = ("sum", "norm")


class SummedGradients:
    """`‖Σ_b ∇W_b[:, j]‖²` per column: the gradients are summed up whole, on the CPU."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, gradient: Tensor) -> None:
        """Add a batch's `∇W` of the layer `name`, shape `(out, in)`."""
        gradient = gradient.to("cpu", torch.promote_types(gradient.dtype, torch.float32))
        self._sums[name] = self._sums[name].add_(gradient) if name in self._sums else gradient

    def result(self) -> dict[str, Tensor]:
        """The squared column norms by layer, shape `(in,)` each."""
        return {name: total.square().sum(0, dtype=torch.float64) for name, total in self._sums.items()}


class GradientNorms:
    """`Σ_b ‖∇W_b[:, j]‖²` per column: `in` numbers a layer."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, gradient: Tensor) -> None:
        """Add a batch's `∇W` of the layer `name`, shape `(out, in)`."""
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        norms = torch.linalg.vector_norm(gradient, dim=0, dtype=dtype).cpu().double().square()
        self._sums[name] = self._sums[name] + norms if name in self._sums else norms

    def result(self) -> dict[str, Tensor]:
        """The sums by layer, shape `(in,)` each."""
        return dict(self._sums)


Accumulator = SummedGradients | GradientNorms


class _Tap(torch.autograd.Function):
    """Passes a layer's output on, and in backward makes the layer's weight gradient for the accumulator."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,  # (..., out)
        x: Tensor,  # (..., in)
        anchor: Tensor,  # requires a gradient, so that y does, whatever comes before it
        name: str,
        accumulator: Accumulator,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.name, ctx.accumulator = name, accumulator
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        tokens, grads = x.reshape(-1, x.shape[-1]), grad_output.reshape(-1, grad_output.shape[-1])
        ctx.accumulator.add(ctx.name, grads.t() @ tokens.to(grads.dtype))  # ∇W = ∇Yᵀ X
        return grad_output, None, None, None, None


def _tap(
    layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor, name: str, accumulator: Accumulator, anchor: Tensor
) -> Tensor:
    return _Tap.apply(y, inputs[0], anchor, name, accumulator)


@contextmanager
def tapped(layers: dict[str, Any], accumulator: Accumulator) -> Iterator[None]:
    """Have backward passes inside a `with` block hand every layer's weight gradient to the accumulator."""
    anchor = torch.zeros((), requires_grad=True)
    with ExitStack() as hooks, torch.enable_grad():
        for name, layer in layers.items():
            tap = partial(_tap, name=name, accumulator=accumulator, anchor=anchor)
            hooks.enter_context(layer.register_forward_hook(tap))
        yield


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Keep no block's activations for backward, where a model of transformers can recompute them.

    So the layers' whole inputs, which a step of training PaCA never keeps, live for one block at a time.

    Args:
        model: The base model; any other than transformers' is left as it is.

    Yields:
        None: Nothing.
    """
    able = getattr(model, "supports_gradient_checkpointing", False) and not model.is_gradient_checkpointing
    if able:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if able:
            model.gradient_checkpointing_disable()
