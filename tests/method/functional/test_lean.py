"""Lean functions against what autograd makes of the same operations: values, gradients, and what is kept."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from paca.method.functional import lean
from paca.profiling import kept_for_backward

ACTIVATIONS = {
    "silu": (lean.SILU, F.silu),
    "gelu": (lean.GELU, F.gelu),
    "gelu-tanh": (lean.GELU_TANH, partial(F.gelu, approximate="tanh")),
    "autograd's": (lean.activation_by_autograd(lambda x: x * torch.tanh(F.softplus(x))), F.mish),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPE = (3, 5, 8)


def new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0))))


def plain_norm(x, weight, eps, offset=0.0, rounds_first=True):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if rounds_first:
        return weight * normed.to(x.dtype)
    return (normed * (offset + weight.to(wide.dtype))).to(x.dtype)


def plain_layer_norm(x, weight, eps):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = wide.mean(-1, keepdim=True)
    variance = (wide - mean).pow(2).mean(-1, keepdim=True)
    return (weight.to(wide.dtype) * ((wide - mean) * torch.rsqrt(variance + eps))).to(x.dtype)


def styled(**options):
    return partial(lean.rms_norm, **options), partial(plain_norm, **options)


NORMS = {
    "rounded first": styled(),
    "rounded last": styled(rounds_first=False),
    "around zero": styled(offset=1.0, rounds_first=False),
    "centered": (lean.layer_norm, plain_layer_norm),
}


def plain_rotary(query, key, cos, sin):
    def turn(x):
        first, second = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]

    return turn(query), turn(key)


def gradients(function, *inputs):
    """Outputs, and the gradients of the inputs under one from above in which every entry differs."""
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    y = function(*inputs)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype))
    return [y.detach(), *(x.grad for x in inputs if x.requires_grad)]


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def assert_same_bits(found, wanted):
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu-tanh"])
def test_a_gated_activation_is_bit_equal(name, dtype):
    activation, function = ACTIVATIONS[name]
    inputs = randn(*SHAPE, dtype=dtype), randn(*SHAPE, dtype=dtype)
    found = gradients(lambda gate, up: lean.gated(gate, up, activation), *inputs)
    assert_same_bits(found, gradients(lambda gate, up: function(gate) * up, *inputs))
    assert not torch.equal(found[1], gradients(lambda gate, up: up * function(gate), *inputs[::-1])[1])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_gated_activation_of_two_dtypes_gives_each_its_own_gradient(name):
    activation, _ = ACTIVATIONS[name]
    gate, up = randn(*SHAPE, dtype=torch.bfloat16), randn(*SHAPE)
    y, grad_gate, grad_up = gradients(lambda g, u: lean.gated(g, u, activation), gate, up)
    assert (y.dtype, grad_gate.dtype, grad_up.dtype) == (torch.float32, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_a_gated_activation_gives_gradients_to_what_needs_them(trained):
    gate, up = (randn(*SHAPE).requires_grad_(needed) for needed in trained)
    y = lean.gated(gate, up, lean.SILU)
    y.sum().backward()
    assert (gate.grad is not None, up.grad is not None) == trained


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_activations_pass_gradcheck(name):
    activation, _ = ACTIVATIONS[name]
    inputs = randn(2, 3, dtype=torch.float64), randn(2, 3, dtype=torch.float64)
    assert gradcheck(lambda gate, up: lean.gated(gate, up, activation), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_elementwise_function_is_bit_equal(dtype):
    x = randn(*SHAPE, dtype=dtype)
    assert_same_bits(gradients(lambda x: lean.elementwise(x, new_gelu), x), gradients(new_gelu, x))


def test_an_elementwise_function_passes_gradcheck():
    assert gradcheck(lambda x: lean.elementwise(x, new_gelu), (randn(2, 3, dtype=torch.float64),))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("style", NORMS)
def test_a_norm_equals_the_plain_one_within_a_rounding(style, dtype):
    mine, theirs = NORMS[style]
    x, weight = randn(*SHAPE, dtype=dtype), randn(8, dtype=dtype)
    y, grad_x, grad_weight = gradients(lambda x, w: mine(x, w, 1e-6), x, weight)
    y0, grad_x0, grad_weight0 = gradients(lambda x, w: theirs(x, w, 1e-6), x, weight)
    assert torch.equal(y, y0)
    torch.testing.assert_close(grad_x, grad_x0)
    torch.testing.assert_close(grad_weight, grad_weight0)


@pytest.mark.parametrize("style", NORMS)
@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 1, 5)])
def test_norms_pass_gradcheck(style, shape):
    x, weight = randn(*shape, dtype=torch.float64), randn(shape[-1], dtype=torch.float64)
    assert gradcheck(lambda x, w: NORMS[style][0](x, w, 1e-6), (x, weight))


FIRST_ORDER = {
    "gated": lambda x: lean.gated(x, x, lean.SILU),
    "elementwise": lambda x: lean.elementwise(x, new_gelu),
    "norm": lambda x: lean.rms_norm(x, torch.ones(3), 1e-6),
}


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_a_second_derivative_is_refused_and_the_first_is_right(name):
    x = randn(2, 3)
    (wanted,) = torch.autograd.grad(FIRST_ORDER[name](x).square().sum(), x)
    (grad,) = torch.autograd.grad(FIRST_ORDER[name](x).square().sum(), x, create_graph=True)
    assert torch.equal(grad, wanted)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_embeddings_are_bit_equal(dtype):
    query, key = randn(2, 4, 5, 8, dtype=dtype), randn(2, 2, 5, 8, dtype=dtype)
    angle = torch.randn(2, 5, 8)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    for one in (0, 1):
        assert_same_bits(
            gradients(lambda q, k, one=one: lean.rotary(q, k, cos, sin)[one], query, key)[: 2 + one : 1 + one],
            gradients(lambda q, k, one=one: plain_rotary(q, k, cos, sin)[one], query, key)[: 2 + one : 1 + one],
        )


def test_rotary_embeddings_pass_gradcheck():
    query, key = randn(1, 2, 3, 4, dtype=torch.float64), randn(1, 1, 3, 4, dtype=torch.float64)
    angle = torch.randn(1, 3, 4, dtype=torch.float64)
    assert gradcheck(lambda q, k: lean.rotary(q, k, angle.cos(), angle.sin()), (query, key))
    assert gradgradcheck(lambda q, k: lean.rotary(q, k, angle.cos(), angle.sin()), (query, key))


def seeded(function, *inputs):
    torch.manual_seed(3)
    found = gradients(function, *inputs)
    return [*found, torch.rand(2)]  # what is drawn next is part of the result


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_is_bit_equal_and_leaves_the_random_numbers_where_the_plain_one_does(dtype):
    x = randn(40, 50, dtype=dtype)
    found = seeded(lambda x: lean.dropout(x, 0.3), x)
    assert_same_bits(found, seeded(lambda x: F.dropout(x, 0.3), x))
    assert 0.2 < (found[0] == 0).float().mean() < 0.4


def test_a_second_dropout_draws_another_mask_and_each_keeps_its_own():
    x = torch.ones(40, 50, requires_grad=True)
    assert_same_bits(
        seeded(lambda x: lean.dropout(x, 0.3) + 2 * lean.dropout(x, 0.3), x),
        seeded(lambda x: F.dropout(x, 0.3) + 2 * F.dropout(x, 0.3), x),
    )


def test_dropout_of_a_gradient_that_lies_otherwise_draws_the_same_mask():
    x = torch.ones(40, 50, requires_grad=True)
    torch.manual_seed(3)
    y = lean.dropout(x, 0.3)
    y.backward(torch.ones(50, 40).t())
    assert torch.equal(x.grad, y.detach())


N = torch.Size(SHAPE).numel()
KEPT = {  # bytes, lean and plain, of inputs that live in the graph alone
    "gated": (
        lambda x: lean.gated(2 * x, 3 * x, lean.SILU),
        lambda x: F.silu(2 * x) * (3 * x),
        (2 * N * 4, 3 * N * 4),
    ),
    "elementwise": (lambda x: lean.elementwise(2 * x, new_gelu), lambda x: new_gelu(2 * x), (N * 4, None)),
    "dropout": (lambda x: lean.dropout(x, 0.3), lambda x: F.dropout(x, 0.3), (0, N * 4)),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept(name):
    mine, theirs, (least, most) = KEPT[name]
    x = randn(*SHAPE)
    assert kept_for_backward(lambda: mine(x)) == least
    plain = kept_for_backward(lambda: theirs(x))
    assert plain == most if most is not None else plain > 2 * least


@pytest.mark.parametrize("style", NORMS)
def test_a_norm_keeps_its_input_in_its_own_dtype_and_a_number_per_row(style):
    mine, theirs = NORMS[style]
    x, weight = randn(*SHAPE, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    rows = N // 8 * 4
    assert kept_for_backward(lambda: mine(2 * x, weight, 1e-6)) == 2 * N + rows
    assert kept_for_backward(lambda: theirs(2 * x, weight, 1e-6)) >= 4 * N + rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_pytorchs_layer_norm_keeps_as_little(dtype):
    x, norm = randn(*SHAPE, dtype=dtype), torch.nn.LayerNorm(8, dtype=dtype)
    statistics = 2 * N // 8 * dtype.itemsize
    assert kept_for_backward(lambda: norm(2 * x)) == N * dtype.itemsize + statistics
