"""Small models, and a reference that computes what PaCA must compute in plain autograd."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.func import functional_call
from transformers import LlamaConfig
from transformers.pytorch_utils import Conv1D

import paca.method.columns.resident
from paca import PacaConfig, PacaError, PacaLayer

KINDS = ("Linear", "Conv1D")

# Of a language model of any family, 32 wide.
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "pad_token_id": 0,
}


def linear(kind, into, out):
    """A linear layer of one of the kinds, with a bias that is not zero."""
    layer = nn.Linear(into, out) if kind == "Linear" else Conv1D(out, into)
    nn.init.normal_(layer.weight, std=0.3)
    nn.init.normal_(layer.bias, std=0.3)
    return layer


class Toy(nn.Module):
    """Two layers to adapt, and a head."""

    def __init__(self, kind="Linear"):
        super().__init__()
        self.one = linear(kind, 10, 12)
        self.two = linear(kind, 12, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


def config(**options):
    """Random updates on both layers: an adapter that changes the output."""
    return PacaConfig(**{"r": 3, "target_modules": ["one", "two"], "init_weights": False, "random_seed": 0, **options})


def adapted(kind="Linear", dtype=torch.float64, **options):
    """The plain model, and an adapted copy of it."""
    torch.manual_seed(0)
    plain = Toy(kind).to(dtype)
    return plain, get_peft_model(copy.deepcopy(plain), config(**options))


def inputs(dtype=torch.float64, rows=6):
    """A batch."""
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


def rounding(dtype, *lengths):
    """How far sums of these lengths may change, relative to their terms, in another order: by a rounding per term."""
    return torch.finfo(dtype).eps * sum(lengths)


def layers(model):
    """The adapted layers by their name in the base model."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, PacaLayer)
    }


def adapted_weights(plain, model, adapters):
    """`W₀ + Σ s·Δ` for every adapted layer, differentiable in the updates."""
    weights = {}
    for name, layer in layers(model).items():
        total = plain.get_submodule(name).weight.detach()
        for adapter in (adapter for adapter in adapters if adapter in layer.paca_delta):
            update = layer.scaling[adapter] * layer.paca_delta[adapter].to(total.dtype)
            indices = layer.paca_indices[adapter]
            total = total.index_add(layer.connection_dim, indices, update if layer.connection_dim else update.t())
        weights[f"{name}.weight"] = total
    return weights


def reference(plain, model, x, adapters=("default",)):
    """The output of the plain model with its weights replaced by `W₀ + Σ s·Δ`."""
    return functional_call(plain, adapted_weights(plain, model, adapters), (x,))


def trained(model):
    """The parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def assert_resident(model):
    """The weights can hold the columns: the additive way is right as well, but it is not the method."""
    for name, layer in layers(model).items():
        assert layer.holds_columns(), name


def in_products_only(monkeypatch):
    """Have columns be in weights during a product only, as where a second module looks at the same memory."""
    monkeypatch.setattr(paca.method.columns.resident, "has_twin", lambda weight: True)


def held(weight):
    """What a weight's memory holds, read without the weight's noticing: else it would show its pretrained values."""
    with torch._C.DisableTorchFunctionSubclass():
        return weight.detach().clone(memory_format=torch.contiguous_format)


def assert_pretrained(plain, model):
    """Every adapted layer's weight is the pretrained one, bit for bit."""
    for name, layer in layers(model).items():
        assert torch.equal(layer.base_layer.weight, plain.get_submodule(name).weight), name


@torch.no_grad()
def logits_under(model, adapter, ids):
    """A language model's logits with an adapter, or with none; the active one stays."""
    if adapter is None:
        with model.disable_adapter():
            return model(ids).logits
    active = model.active_adapter
    model.set_adapter(adapter)
    logits = model(ids).logits
    model.set_adapter(active)
    return logits


def train(model, steps=3, lr=0.1, dtype=torch.float64):
    """A few steps of AdamW."""
    optimizer = torch.optim.AdamW(trained(model), lr=lr)
    for _ in range(steps):
        model(inputs(dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def three_steps(model, loss, optimizer):
    """Three steps, each with its columns in the weight and a gradient for every update; returns their losses."""
    losses = []
    for _ in range(3):
        value = loss()
        assert_resident(model)
        value.backward()
        assert all(parameter.grad is not None for parameter in trained(model))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def assert_checkpointing_changes_no_gradient(make, batch):
    """Both ways in which transformers checkpoints: the gradients are those of a plain backward pass."""
    gradients = []
    for reentrant in (None, True, False):
        model = make().train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in trained(model)])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=0, atol=1e-12)


def assert_refused(name, layer, rank, message):
    """A layer that cannot be adapted is refused by its name, and the model stays as it was."""
    model = nn.Sequential()
    model.add_module(name, layer)
    with pytest.raises(PacaError, match=message):
        get_peft_model(model, PacaConfig(r=rank, target_modules=[name]))
    assert not any("paca" in parameter for parameter, _ in model.named_parameters())


def tiny_llama_config(**changes):
    """A Llama of two layers, 64 wide."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128}
    return LlamaConfig(**{**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, **changes})


def in_named_precision(model):
    """Have bitsandbytes compute in the dtype that a model names; in eval mode it takes bfloat16, on CPUs that can."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
