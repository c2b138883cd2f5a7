"""Elementwise parts of a model as autograd functions that keep the least, and compute again in backward what is cheap.

No matrix product is computed again. Where backward runs the operations that autograd would have run, on the same
values, gradients are the same bit for bit. Dimension letters:

    G, U  (..., n)  a gate, and what it gates     w  (n,)      a norm's weight
    X     (..., n)  any other input               ρ  (..., 1)  `1 / √(mean(X²) + ε)`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its derivative.

    Args:
        function: From `X` to `Y`.
        gradient: From `∇Y` and `X` to `∇X`.
    """

    function: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


def activation_by_autograd(function: Callable[[Tensor], Tensor]) -> Activation:
    """An elementwise function whose derivative is autograd's, of a graph that is made in backward and freed there."""

    def gradient(grad: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(function(again), again, grad)
        return found

    return Activation(function, gradient)


_aten = torch.ops.aten
SILU = Activation(F.silu, _aten.silu_backward.default)
GELU = Activation(F.gelu, _aten.gelu_backward.default)
GELU_TANH = Activation(partial(F.gelu, approximate="tanh"), partial(_aten.gelu_backward.default, approximate="tanh"))


def _first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Under `create_graph=True` the gradients are right, and a second derivative is refused.

    Without it nothing is wrapped, so that compiled code sees plain operations.
    """
    refusing = once_differentiable(backward)

    def either(ctx: Any, grad: Tensor) -> Any:
        return refusing(ctx, grad) if torch.is_grad_enabled() else backward(ctx, grad)

    return either


class _Gated(torch.autograd.Function):
    """`Y = f(G) ⊙ U`. Keeps `G` and `U`; autograd keeps `f(G)` as well."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation.function(gate) * up

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gate, up = ctx.saved_tensors
        grad_gate = grad_up = None
        if ctx.needs_input_grad[1]:  # ∇U = ∇Y ⊙ f(G)
            grad_up = (grad * ctx.activation.function(gate)).to(up.dtype)
        if ctx.needs_input_grad[0]:  # ∇G = (∇Y ⊙ U) ⊙ f′(G)
            grad_gate = ctx.activation.gradient((grad * up).to(gate.dtype), gate)
        return grad_gate, grad_up, None


class _Elementwise(torch.autograd.Function):
    """`Y = f(X)` for an `f` made of several operations. Keeps `X`; autograd keeps what each operation needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activation = activation
        return activation.function(x)

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        return ctx.activation.gradient(grad, x), None


class _Norm(torch.autograd.Function):
    """`Y = (w + offset) ⊙ X ρ`. Keeps `X` in its own dtype, and `ρ`; autograd keeps a float32 copy of `X`.

    `rounds_first` says whether `X ρ` is rounded to the input's dtype before the weight is multiplied in, or after.
    With `centers` the mean is taken off `X` first, and off its gradient last.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool, centers: bool
    ) -> Tensor:
        wide = _centered(_wide(x)) if centers else _wide(x)
        rho = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rho)
        ctx.offset, ctx.rounds_first, ctx.centers = offset, rounds_first, centers
        normed = wide * rho
        if rounds_first:
            return weight * normed.to(x.dtype)
        return (normed * _scale(weight, offset)).to(x.dtype)

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, rho = ctx.saved_tensors
        wide = _centered(_wide(x)) if ctx.centers else _wide(x)
        above = grad if ctx.rounds_first else _wide(grad)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:  # ∇w = Σ ∇Y ⊙ X ρ
            normed = (wide * rho).to(above.dtype)
            grad_weight = (above * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:  # with N = ∇Y ⊙ w: ∇X = ρ N − ρ³ X · mean(N ⊙ X)
            grad_normed = _wide(above * _scale(weight, ctx.offset))
            pull = rho.pow(3) * (grad_normed * wide).mean(-1, keepdim=True)
            grad_x = torch.addcmul(grad_normed * rho, wide, pull, value=-1)
            grad_x = (_centered(grad_x) if ctx.centers else grad_x).to(x.dtype)
        return grad_x, grad_weight, None, None, None, None


def _wide(x: Tensor) -> Tensor:
    """In float32, unless it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _centered(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _scale(weight: Tensor, offset: float) -> Tensor:
    return offset + _wide(weight) if offset else weight


class _Rotary(torch.autograd.Function):
    """`Y = X ⊙ cos + [−X₂, X₁] ⊙ sin`, with the halves of the last dimension. Keeps neither, as autograd does.

    Its backward is one rotation the other way; autograd pads the gradient of each half with zeros and adds them up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * cos + turned * sin

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        turned = grad * sin
        back = torch.cat((turned[..., half:], -turned[..., :half]), dim=-1)
        return (grad * cos + back).to(ctx.dtype), None, None


class _Dropout(torch.autograd.Function):
    """Dropout that keeps the state of the random numbers and draws its mask again; autograd keeps the mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p, ctx.state = p, _random_state(x.device)
        return F.dropout(x, p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        # What x was multiplied by, the gradient is: zero, or 1 / (1 − p).
        devices = [] if grad.device.type == "cpu" else [grad.device]
        with torch.random.fork_rng(devices, device_type="cuda" if not devices else grad.device.type):
            _set_random_state(grad.device, ctx.state)
            return F.dropout(grad.contiguous(), ctx.p), None


def _random_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """`f(G) ⊙ U`, keeping `G` and `U`; all of shape `(..., n)`."""
    result: Tensor = _Gated.apply(gate, up, activation)
    return result


def elementwise(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`f(X)`, keeping `X`; for a function without parameters or random numbers. Shape `(..., n)`."""
    result: Tensor = _Elementwise.apply(x, activation_by_autograd(function))
    return result


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, rounds_first: bool = True) -> Tensor:
    """`(w + offset) ⊙ X / √(mean(X²) + ε)`, computed in float32 at least, keeping `X` and one statistic per row.

    Args:
        x: Shape `(..., n)`.
        weight: Shape `(n,)`.
        eps: ε.
        offset: Added to the weight.
        rounds_first: Round to the input's dtype before the weight is multiplied in, rather than after.

    Returns:
        Shape `(..., n)`.
    """
    result: Tensor = _Norm.apply(x, weight, eps, offset, rounds_first, False)
    return result


def layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`w ⊙ (X − mean(X)) / √(var(X) + ε)`, computed in float32 at least, keeping `X` and one statistic per row.

    `F.layer_norm` keeps no more; this is for those that are written in several operations.

    Args:
        x: Shape `(..., n)`.
        weight: Shape `(n,)`.
        eps: ε.

    Returns:
        Shape `(..., n)`.
    """
    result: Tensor = _Norm.apply(x, weight, eps, 0.0, False, True)
    return result


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotary position embeddings of queries and keys, as transformers' `apply_rotary_pos_emb` is called.

    Args:
        query: Shape `(batch, heads, tokens, size)`.
        key: Likewise; it may have fewer heads.
        cos: Shape `(batch, tokens, size)`; no gradient reaches it.
        sin: Likewise.
        unsqueeze_dim: Where queries and keys have their heads.

    Returns:
        Both, rotated.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotary.apply(query, cos, sin), _Rotary.apply(key, cos, sin)


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout with the mask that `F.dropout` would draw, keeping nothing of the input's size.

    Args:
        x: Contiguous, any shape: where else elements lie, the mask would be drawn in another order.
        p: The probability that an element is zeroed, below 1.

    Returns:
        The same shape.
    """
    result: Tensor = _Dropout.apply(x, p)
    return result
