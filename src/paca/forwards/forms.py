"""The table of lean forwards: which modules get one, what it is, and what it keeps for backward."""

import functools
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..method.functional import lean
from .activations import activation_of, has_hooks, is_activation
from .code import code_of
from .loss import loss_refusal, with_lean_loss

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Form:
    """One kind of module that can keep less.

    Args:
        name: What it is called in reports.
        keeps: What its lean forward keeps for backward.
        example: A class of it, `module:name`.
        fits: Whether a class is of it.
        make: From such a class to the lean forward, a method.
        refuse: Why a module of such a class stays as it is; None where there is no reason.
    """

    name: str
    keeps: str
    example: str
    fits: Callable[[type], bool]
    make: Callable[[type], Forward]
    refuse: Callable[[Any], str | None] = lambda module: None


def _does(*codes: str, methods: tuple[str, ...] = ("forward",)) -> Callable[[type], bool]:
    """Whether a class's methods have code that is known, as `code_of` names it."""

    def fits(kind: type) -> bool:
        found = [getattr(kind, name, None) for name in methods]
        return all(callable(method) for method in found) and code_of(*found) in codes

    return fits


def _in_place_of_plain(forward: Forward) -> Callable[[type], Forward]:
    """Make a method of a function that takes the module, its plain forward, and what that one takes."""

    def make(kind: Any) -> Forward:
        @functools.wraps(kind.forward)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return forward(self, functools.partial(kind.forward, self), *args, **kwargs)

        return method

    return make


def _activation_refusal(name: str) -> Callable[[Any], str | None]:
    def refuse(module: Any) -> str | None:
        activation = getattr(module, name, None)
        if not isinstance(activation, nn.Module):
            return f"its {name} is no module"
        if has_hooks(activation):
            return f"hooks watch its {name}, which would miss calls"
        if not is_activation(activation):
            return f"its {name} is {type(activation).__name__}, which is not known to be elementwise"
        return None

    return refuse


def _wanted(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _gated_mlp(module: Any, plain: Forward, x: Tensor) -> Tensor:
    activation = activation_of(module.act_fn)
    if activation is None or not torch.is_grad_enabled():
        return plain(x)
    return module.down_proj(lean.gated(module.gate_proj(x), module.up_proj(x), activation))


def _fused_gated_mlp(module: Any, plain: Forward, x: Tensor) -> Tensor:
    activation = activation_of(module.activation_fn)
    if activation is None or not torch.is_grad_enabled():
        return plain(x)
    gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
    return module.down_proj(lean.gated(gate, up, activation))


def _timm_glu(module: Any, plain: Forward, x: Tensor) -> Tensor:
    activation = activation_of(module.act)
    if activation is None or not torch.is_grad_enabled():
        return plain(x)
    first, second = module.fc1(x).chunk(2, dim=module.chunk_dim)
    gate, up = (second, first) if module.gate_last else (first, second)
    hidden = module.norm(module.drop1(lean.gated(gate, up, activation)))
    return module.drop2(module.fc2(hidden))


def _timm_swiglu(module: Any, plain: Forward, x: Tensor) -> Tensor:
    activation = activation_of(module.act)
    if activation is None or not torch.is_grad_enabled():
        return plain(x)
    hidden = module.norm(module.drop1(lean.gated(module.fc1_g(x), module.fc1_x(x), activation)))
    return module.drop2(module.fc2(hidden))


def _norm(compute: Callable[..., Tensor], eps: str, **options: Any) -> Forward:
    def forward(module: Any, plain: Forward, x: Tensor) -> Tensor:
        # The plain ones compute in float32 whatever they are given, and so lose what float64 is used for.
        if x.dtype == torch.float64 or module.weight.dim() != 1 or not _wanted(x, module.weight):
            return plain(x)
        value = getattr(module, eps)
        return compute(x, module.weight, torch.finfo(torch.float32).eps if value is None else value, **options)

    return forward


_norm_rounded_last = _norm(lean.rms_norm, "eps", rounds_first=False)


def _pytorchs_rms_norm(module: Any, plain: Forward, x: Tensor) -> Tensor:
    # On a GPU it is one kernel, which keeps as little.
    return plain(x) if x.is_cuda else _norm_rounded_last(module, plain, x)


def _pytorchs_rms_norm_refusal(module: Any) -> str | None:
    one_per_channel = module.weight is not None and module.weight.dim() == 1
    return None if one_per_channel else "it has no weight of one dimension"


def _activation(module: Any, plain: Forward, x: Tensor) -> Tensor:
    if not _wanted(x) or torch.compiler.is_compiling():  # compiled code chooses itself what it computes again
        return plain(x)
    return lean.elementwise(x, plain)


def _dropout(module: Any, plain: Forward, x: Tensor) -> Tensor:
    drops = module.training and 0 < module.p < 1 and not module.inplace
    if not drops or not _wanted(x) or not x.is_contiguous() or torch.compiler.is_compiling():
        return plain(x)
    return lean.dropout(x, module.p)


_ROTARY = "apply_rotary_pos_emb"


def _has_known_rotary(kind: Any) -> bool:
    """Whether a class's forward rotates queries and keys by a function of known code, which it finds by its name."""
    forward = kind.forward
    if not isinstance(forward, types.FunctionType) or _ROTARY not in forward.__code__.co_names:
        return False
    functions = [forward.__globals__.get(name) for name in (_ROTARY, "rotate_half")]
    return all(callable(function) for function in functions) and code_of(*functions) == "d9736a79be0f"


def _with_lean_rotary(kind: Any) -> Forward:
    """The class's own forward, which finds the lean function by that name."""
    plain = kind.forward
    known = {**plain.__globals__, _ROTARY: lean.rotary}
    forward = types.FunctionType(plain.__code__, known, plain.__name__, plain.__defaults__, plain.__closure__)
    return functools.update_wrapper(forward, plain)


# Of transformers.activations; the others are one operator each, for which autograd keeps the input alone.
_SEVERAL_OPERATIONS = (
    "AccurateGELUActivation",
    "ClippedGELUActivation",
    "FastGELUActivation",
    "LaplaceActivation",
    "NewGELUActivation",
    "QuickGELUActivation",
    "ReLUSquaredActivation",
    "SqrtSoftplusActivation",
)

_LLAMA = "transformers.models.llama.modeling_llama"
_ROW = "the input in its own dtype, and one number per row"

FORMS: tuple[Form, ...] = (
    Form(
        "gated MLP",
        "gate and up",
        f"{_LLAMA}:LlamaMLP",
        _does("d9e9fc411102", "2e97b5598c8f"),
        _in_place_of_plain(_gated_mlp),
        _activation_refusal("act_fn"),
    ),
    Form(
        "gated MLP, one projection",
        "that projection's output",
        "transformers.models.phi3.modeling_phi3:Phi3MLP",
        _does("cc9ee1739c1f"),
        _in_place_of_plain(_fused_gated_mlp),
        _activation_refusal("activation_fn"),
    ),
    Form(
        "timm's GluMlp",
        "its first projection's output",
        "timm.layers.mlp:GluMlp",
        _does("a5b2aaa52cfd"),
        _in_place_of_plain(_timm_glu),
        _activation_refusal("act"),
    ),
    Form(
        "timm's SwiGLU",
        "gate and up",
        "timm.layers.mlp:SwiGLU",
        _does("2750f96f92a9"),
        _in_place_of_plain(_timm_swiglu),
        _activation_refusal("act"),
    ),
    Form(
        "RMSNorm",
        _ROW,
        f"{_LLAMA}:LlamaRMSNorm",
        _does("075c8d198279"),
        _in_place_of_plain(_norm(lean.rms_norm, "variance_epsilon")),
    ),
    Form(
        "RMSNorm, rounded last",
        _ROW,
        "transformers.models.olmo2.modeling_olmo2:Olmo2RMSNorm",
        _does("2c29d28177de"),
        _in_place_of_plain(_norm(lean.rms_norm, "variance_epsilon", rounds_first=False)),
    ),
    Form(
        "RMSNorm, weight around zero",
        _ROW,
        "transformers.models.gemma.modeling_gemma:GemmaRMSNorm",
        _does("1c7671602322", methods=("forward", "_norm")),
        _in_place_of_plain(_norm(lean.rms_norm, "eps", offset=1.0, rounds_first=False)),
    ),
    Form(
        "PyTorch's RMSNorm",
        _ROW,
        "torch.nn:RMSNorm",
        lambda kind: kind is nn.RMSNorm,
        _in_place_of_plain(_pytorchs_rms_norm),
        _pytorchs_rms_norm_refusal,
    ),
    Form(
        "LayerNorm of several operations",
        _ROW,
        "transformers.models.cohere.modeling_cohere:CohereLayerNorm",
        _does("fae322666ee3"),
        _in_place_of_plain(_norm(lean.layer_norm, "variance_epsilon")),
    ),
    Form(
        "rotary embeddings",
        "nothing, as without it; its backward is one rotation",
        f"{_LLAMA}:LlamaAttention",
        _has_known_rotary,
        _with_lean_rotary,
    ),
    Form(
        "activation of several operations",
        "the input",
        "transformers.activations:NewGELUActivation",
        lambda kind: kind.__module__ == "transformers.activations" and kind.__name__ in _SEVERAL_OPERATIONS,
        _in_place_of_plain(_activation),
    ),
    Form(
        "dropout",
        "the state of the random numbers",
        "torch.nn:Dropout",
        lambda kind: kind is nn.Dropout,
        _in_place_of_plain(_dropout),
    ),
)

LOSS = Form(
    "loss of a causal language model",
    "the gradient of its last hidden state",
    f"{_LLAMA}:LlamaForCausalLM",
    _does("d5d48ce4b3d8"),
    with_lean_loss,
    loss_refusal,
)


def form_of(kind: type, forms: Iterable[Form]) -> Form | None:
    """Find the form of a class among several; None where it has none of them."""
    return next((form for form in forms if form.fits(kind)), None)
