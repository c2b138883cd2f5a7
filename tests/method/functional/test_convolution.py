"""The partial convolution against full fine-tuning of the plain one, restricted to the selected connections."""

import pytest
import torch
from tests.method.functional.loans import Held, updates
from torch import nn

from paca.method.functional.convolution import Geometry, partial_conv

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SHAPES = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"padding": 2, "dilation": 2},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "stride": 2},
    "depthwise, two filters a channel": {"groups": 4, "out_channels": 8},
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 6e-2}


def problem(kind, options, dtype=torch.float64):
    """A layer, an input, connections, and where in the weight they are."""
    layer = kind(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options}).to(dtype)
    x = torch.randn(2, 4, *[6] * (layer.weight.dim() - 2), dtype=dtype)
    geometry = Geometry(layer.stride, layer.padding, layer.dilation, layer.groups)
    if layer.groups == 4:
        indices = torch.tensor([0, 3])
        where = (indices,)
    else:
        indices = torch.tensor([0, 1]) if layer.groups == 2 else torch.tensor([1, 3])
        where = (slice(None), indices)
    return layer, x, geometry, indices, where


def by_connection(layer, weight):
    """A view of the weight in which a depthwise convolution has its filters of each channel together."""
    return weight.unflatten(0, (4, -1)).squeeze(2) if layer.groups == 4 else weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_full_fine_tuning(kind, options, dtype):
    layer, x, geometry, indices, where = problem(kind, options, dtype)
    exact, exact_x = layer.double(), x.double().requires_grad_()
    wanted = exact(exact_x)
    upstream = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).reshape(wanted.shape)
    wanted.backward(upstream)
    x = x.requires_grad_()
    bias = layer.bias.detach().to(dtype).requires_grad_()
    delta = torch.zeros_like(by_connection(layer, layer.weight)[where], dtype=dtype).requires_grad_()
    y = partial_conv(
        x,
        bias,
        Held(layer.weight.detach().to(dtype)),
        layer.weight.shape,
        geometry,
        updates((indices,), (2.5,), (delta,)),
    )
    y.backward(upstream.to(dtype))
    pairs = ((y, wanted), (x.grad, exact_x.grad), (bias.grad, layer.bias.grad))
    for got, right in (*pairs, (delta.grad, 2.5 * by_connection(layer, layer.weight.grad)[where])):
        assert got.dtype == dtype
        bound = TOLERANCE[dtype] * max(1.0, right.abs().max().item())
        torch.testing.assert_close(got.double(), right, rtol=0, atol=bound)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_gradcheck_of_channels_last_and_unbatched_inputs(options):
    layer, x, geometry, indices, where = problem(nn.Conv2d, options)
    weight = layer.weight.detach()

    def run(x, bias, delta):
        shown = weight.clone()
        by_connection(layer, shown)[where] += 0.5 * delta.detach()
        return partial_conv(x, bias, Held(shown), shown.shape, geometry, updates((indices,), (0.5,), (delta,)))

    delta = torch.zeros_like(by_connection(layer, weight)[where]).requires_grad_()
    for rows in (x.to(memory_format=torch.channels_last), x[0]):
        assert torch.autograd.gradcheck(run, [rows.detach().requires_grad_(), layer.bias, delta])


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_only_the_selected_channels_are_kept(options):
    layer, x, geometry, indices, where = problem(nn.Conv2d, options)
    weight, kept = layer.weight.detach(), []
    delta = torch.zeros_like(by_connection(layer, weight)[where]).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        partial_conv(
            x.requires_grad_(), None, Held(weight), weight.shape, geometry, updates((indices,), (1.0,), (delta,))
        )
    groups = 2 if layer.groups == 2 else 1
    assert [tuple(t.shape) for t in kept] == [(2, 2 * groups, 6, 6)]
