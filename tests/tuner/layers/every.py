"""One small network around a layer of each kind, and what it must compute, written out connection by connection."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from peft import get_peft_model
from timm.layers import Conv2dSame
from torch import nn
from torch.func import functional_call
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, Gemma3TextScaledWordEmbedding
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.pytorch_utils import Conv1D

from paca import PacaConfig
from paca.tuner.layers.find import adapter_layers

WIDTH = 8
ROWS, LENGTH = 2, 5
IDS = torch.tensor([[0, 3, 3, 7, 1], [3, 9, 0, 7, 7]])


def numbers(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors():
    return (numbers(ROWS, LENGTH, WIDTH),)


def query_and_memory():
    return numbers(ROWS, LENGTH, WIDTH), numbers(ROWS, LENGTH + 1, WIDTH, seed=8)


def images(dimensions, size=6):
    return lambda: (numbers(ROWS, WIDTH, *[size] * dimensions),)


def routed():
    chosen = torch.tensor([[0, 1], [1, 3], [3, 0], [0, 1], [1, 0]])  # nothing goes to expert 2
    return numbers(LENGTH, WIDTH), chosen, numbers(LENGTH, 2, seed=9).abs()


def simply(layer, *inputs):
    """A function of this module, so that networks can be pickled."""
    return layer(*inputs)


@dataclass(frozen=True)
class Kind:
    """A layer, its inputs, and where in its weights connections are."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    add: Callable[..., torch.Tensor]  # (weight, index, update): the weight with one connection's update added
    kept: int  # numbers kept for backward per connection; none where all are trained, whatever the rank
    options: dict[str, Any] = field(default_factory=dict)  # of the configuration
    call: Callable[..., Any] = simply


def on(dimension):
    """The update of a connection is a slice of the weight."""

    def add(weight, index, update):
        return weight.index_add(dimension, torch.tensor([index]), update.unsqueeze(dimension))

    return add


def on_filters(count):
    """The update of a connection is all filters of one channel."""

    def add(weight, index, update):
        return weight.index_add(0, torch.arange(index * count, (index + 1) * count), update[:, None])

    return add


def on_all(weight, index, update):
    """The update of the one connection is that of the whole weight."""
    return weight + update


def conv(kind, groups=1, **options):
    return lambda: kind(WIDTH, WIDTH, 3, **{"padding": 1, "groups": groups, **options})


def attention(**options):
    return lambda: nn.MultiheadAttention(WIDTH, 2, **{"batch_first": True, **options})


def first(layer, query, memory=None):
    """The output alone; over the query itself, or over another sequence."""
    memory = query if memory is None else memory
    return layer(query, memory, memory, need_weights=False)[0]


def experts():
    config = transformers.MixtralConfig(
        hidden_size=WIDTH, intermediate_size=6, num_local_experts=4, num_experts_per_tok=2
    )
    config._experts_implementation = "eager"
    return MixtralExperts(config)


SPATIAL = 6
KINDS = {
    "Linear": Kind(lambda: nn.Linear(WIDTH, 6), vectors, on(1), ROWS * LENGTH),
    "Conv1D": Kind(lambda: Conv1D(6, WIDTH), vectors, on(0), ROWS * LENGTH),
    "Conv1d": Kind(conv(nn.Conv1d), images(1), on(1), ROWS * SPATIAL),
    "Conv2d": Kind(conv(nn.Conv2d, stride=2), images(2), on(1), ROWS * SPATIAL**2),
    "Conv3d": Kind(conv(nn.Conv3d), images(3), on(1), ROWS * SPATIAL**3),
    "Conv2d, grouped": Kind(conv(nn.Conv2d, groups=2), images(2), on(1), 2 * ROWS * SPATIAL**2),
    "Conv2d, depthwise": Kind(conv(nn.Conv2d, groups=WIDTH), images(2), on_filters(1), ROWS * SPATIAL**2),
    "Conv2dSame": Kind(lambda: Conv2dSame(WIDTH, WIDTH, 4, stride=2), images(2), on(1), ROWS * SPATIAL**2),
    "Embedding": Kind(lambda: nn.Embedding(10, WIDTH), lambda: (IDS,), on(0), 0),
    "Embedding, padded": Kind(lambda: nn.Embedding(10, WIDTH, padding_idx=3), lambda: (IDS,), on(0), 0),
    "Embedding, by frequency": Kind(
        lambda: nn.Embedding(10, WIDTH, scale_grad_by_freq=True), lambda: (IDS,), on(0), 0
    ),
    "Embedding, scaled": Kind(lambda: BartScaledWordEmbedding(10, WIDTH, 0, 3.0), lambda: (IDS,), on(0), 0),
    "Embedding, scaled by a tensor": Kind(
        lambda: Gemma3TextScaledWordEmbedding(10, WIDTH, 0, 3.0), lambda: (IDS,), on(0), 0
    ),
    "LayerNorm": Kind(lambda: nn.LayerNorm(WIDTH), vectors, on_all, 0),
    "Gemma3RMSNorm": Kind(lambda: Gemma3RMSNorm(WIDTH), vectors, on_all, 0),
    "MultiheadAttention": Kind(attention(), vectors, on(1), 2 * ROWS * LENGTH, call=first),
    "MultiheadAttention, across": Kind(
        attention(add_zero_attn=True), query_and_memory, on(1), ROWS * (2 * LENGTH + LENGTH + 1), call=first
    ),
    "experts": Kind(
        experts,
        routed,
        on(2),
        2 * LENGTH * 2,
        {"target_modules": [], "target_parameters": ["layer.gate_up_proj", "layer.down_proj"]},
    ),
}

NORMS = ("LayerNorm", "Gemma3RMSNorm")  # trained over a copy of their weight


class Net(nn.Module):
    """The layer, between others that stay."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.layer = KINDS[kind].make()
        for parameter in self.layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.head = nn.Linear(1, 3)
        self.call = KINDS[kind].call

    def forward(self, x, *more):
        x = x * 1.5 if x.is_floating_point() else x
        return self.head(torch.tanh(self.call(self.layer, x, *more)).unsqueeze(-1))


def config(kind, **options):
    """Random updates: an adapter that changes the output."""
    settings = {"r": 3, "paca_alpha": 5, "target_modules": ["layer"], "random_seed": 0, "init_weights": False}
    return PacaConfig(**{**settings, **KINDS[kind].options, **options})


def adapted(kind, dtype=torch.float64, **options):
    """The plain network, and an adapted copy of it whose updates have the network's dtype."""
    plain = Net(kind).to(dtype)
    return plain, get_peft_model(copy.deepcopy(plain), config(kind, **options), autocast_adapter_dtype=False)


def inputs(kind, dtype=torch.float64):
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in KINDS[kind].inputs())


def differentiable(kind, dtype=torch.float64):
    """Inputs that get a gradient: backward multiplies with the weight for it."""
    return tuple(x.requires_grad_() if x.is_floating_point() else x for x in inputs(kind, dtype))


def weights_of(model, adapter="default"):
    """The adapted layers by the names of their weights in the plain network."""
    found = adapter_layers(model, adapter)
    return {
        name if name.endswith(f".{layer.weight_name}") else f"{name}.{layer.weight_name}": layer
        for name, layer in found.items()
    }


def full_weights(kind, plain, model, adapters=("default",)):
    """`W₀ + Σ s·Δ` in float64, differentiable in the updates."""
    found = {}
    for adapter in adapters:
        for name, layer in weights_of(model, adapter).items():
            total = found.get(name, plain.get_parameter(name).detach().double())
            update = layer.scaling[adapter] * layer.paca_delta[adapter].double()
            for place, index in enumerate(layer.paca_indices[adapter].tolist()):
                total = KINDS[kind].add(total, index, update.select(layer.delta_dim, place))
            found[name] = total
    return found


def reference(kind, plain, model, x, adapters=("default",)):
    """The output, in float64, of the plain network whose weights are `W₀ + Σ s·Δ`."""
    exact = tuple(part.double() if part.is_floating_point() else part for part in x)
    double = copy.deepcopy(plain).double()
    return functional_call(double, full_weights(kind, plain, model, adapters), exact)
