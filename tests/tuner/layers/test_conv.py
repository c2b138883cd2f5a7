"""Adapted convolutions against full fine-tuning of the plain ones, whatever their stride, padding and groups."""

import copy

import pytest
import torch
from peft import get_peft_model
from tests.toys import assert_refused, assert_resident, layers, trained
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.func import functional_call

from paca import PacaConfig

CHANNELS = 4
KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OPTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"padding": 2, "dilation": 2},
    "same": {"padding": "same"},
    "same, uneven": {"padding": "same", "kernel_size": 4},
    "valid": {"padding": "valid"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "replicate, same": {"padding": "same", "padding_mode": "replicate"},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": CHANNELS, "stride": 2},
    "depthwise, two filters a channel": {"groups": CHANNELS, "out_channels": 8},
    "no bias": {"bias": False},
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 8e-2}


class Net(nn.Module):
    """One convolution to adapt, between two layers that stay."""

    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.conv = kind(**{"in_channels": CHANNELS, "out_channels": CHANNELS, "kernel_size": 3, **options})
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.tanh(self.conv(x * self.scale))


def adapted(kind, options, dtype=torch.float64, **config):
    plain = Net(kind, **options).to(dtype)
    settings = {"r": 2, "paca_alpha": 5, "target_modules": ["conv"], "init_weights": False, "random_seed": 0, **config}
    return plain, get_peft_model(copy.deepcopy(plain), PacaConfig(**settings))


def inputs(kind=nn.Conv2d, dtype=torch.float64, size=7):
    spatial = [size] * (KINDS.index(kind) + 1)
    return torch.randn(2, CHANNELS, *spatial, generator=torch.Generator().manual_seed(7)).to(dtype)


def full_weight(plain, layer, adapters=("default",)):
    """`W₀ + Σ s·Δ` in float64, differentiable in the updates, written out connection by connection."""
    total = plain.conv.weight.detach().double().clone()
    filters = plain.conv.out_channels // plain.conv.groups
    for name in adapters:
        for place, connection in enumerate(layer.paca_indices[name].tolist()):
            delta = layer.scaling[name] * layer.paca_delta[name].double()
            if layer.depthwise:
                rows = torch.arange(connection * filters, (connection + 1) * filters)
                total = total.index_add(0, rows, delta[place][:, None])
            else:
                total = total.index_add(1, torch.tensor([connection]), delta[:, place : place + 1])
    return total


def reference(plain, model, x, adapters=("default",)):
    weight = full_weight(plain, layers(model)["conv"], adapters)
    return functional_call(copy.deepcopy(plain).double(), {"conv.weight": weight}, (x.double(),))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_full_fine_tuning_of_the_selected_connections(kind, options, dtype):
    plain, model = adapted(kind, options, dtype)
    x, exact_x = (inputs(kind, to).requires_grad_() for to in (dtype, dtype))
    y, wanted = model(x), reference(plain, model, exact_x)
    assert not torch.allclose(y.double(), plain(x).double(), atol=0.01), "the adapter is to change the output"
    (grad, grad_x) = torch.autograd.grad(y.double().square().sum(), [*trained(model), x])
    right, right_x = torch.autograd.grad(wanted.square().sum(), [*trained(model), exact_x])
    assert_resident(model)
    for got, exact in ((y, wanted), (grad, right), (grad_x, right_x)):
        bound = TOLERANCE[dtype] * max(1.0, exact.abs().max().item())
        torch.testing.assert_close(got.double(), exact.double(), rtol=0, atol=bound)


def test_channels_last_inputs_and_weights_are_exact():
    plain, model = adapted(nn.Conv2d, OPTIONS["strided"])
    model.to(memory_format=torch.channels_last)
    x = inputs().to(memory_format=torch.channels_last)
    y = model(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, reference(plain, model, x), rtol=0, atol=1e-10)
    weight = model.unload().conv.weight
    assert torch.equal(weight, plain.conv.weight)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_several_adapters_and_mixed_batches(options):
    plain, model = adapted(nn.Conv2d, options)
    model.add_adapter("other", PacaConfig(r=2, target_modules=["conv"], init_weights=False, random_seed=3))
    x = inputs()
    for active in (["other"], ["default", "other"]):
        model.base_model.set_adapter(active)
        torch.testing.assert_close(model(x), reference(plain, model, x, active), rtol=0, atol=1e-10)
    model.eval()
    y = model(x, adapter_names=["other", "__base__"])
    torch.testing.assert_close(y[:1], reference(plain, model, x[:1], ["other"]), rtol=0, atol=1e-10)
    torch.testing.assert_close(y[1:], plain(x[1:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("groups", [1, CHANNELS])
def test_a_subclass_that_pads_as_tensorflow_does(size, groups):
    plain, model = adapted(Conv2dSame, {"stride": 2, "groups": groups, "kernel_size": 3})
    x = inputs(size=size)
    torch.testing.assert_close(model(x), reference(plain, model, x), rtol=0, atol=1e-10)
    assert_resident(model)


REFUSED = {
    "standardises": (lambda: StdConv2d(4, 4, 3), r"StdConv2d does more in its forward than convolve"),
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        r"its weight is computed anew in each forward",
    ),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3), r"\(ConvTranspose2d\) is not supported"),
    "too few channels": (lambda: nn.Conv2d(1, 4, 3), r"r=2 does not fit conv, which has 1 connections"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_adapted_is_refused_by_name(make, message):
    assert_refused("conv", make(), 2, message)
