"""The autograd function against full fine-tuning of the plain layer, restricted to the selected columns."""

import pytest
import torch
from tests.method.functional.loans import Held, updates
from torch import nn
from torch.autograd.gradcheck import GradcheckError

from paca.method.functional.linear import column_gradient, partial_linear

IN, OUT, R = 12, 7, 4
SHAPES = {"2-D": (5, IN), "3-D": (2, 5, IN), "4-D": (2, 3, 5, IN), "1-D": (IN,), "empty": (0, IN)}


def reference(x, weight, bias, indices, scaling, delta):
    """Full fine-tuning's own arithmetic: the plain layer, and its weight gradient at the columns."""
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    bias = None if bias is None else bias.detach().clone().requires_grad_()
    y = nn.functional.linear(x, weight, bias)
    y.backward(upstream(y))
    return y, x.grad, scaling * weight.grad[:, indices], None if bias is None else bias.grad


def upstream(y):
    """A gradient from above in which every entry differs."""
    return torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)


def problem(dtype, shape, with_bias):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    weight = torch.randn(OUT, IN, dtype=torch.float64).to(dtype)
    bias = torch.randn(OUT, dtype=torch.float64).to(dtype) if with_bias else None
    indices = torch.tensor([1, 4, 5, 11])
    delta = torch.zeros(OUT, R, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return x, weight, bias, indices, delta


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float64_equals_full_fine_tuning(shape, with_bias):
    x, weight, bias, indices, delta = problem(torch.float64, shape, with_bias)
    y0, grad_x, grad_delta, grad_bias = reference(x, weight, bias, indices, 2.5, delta)
    x.requires_grad_()
    delta.requires_grad_()
    if bias is not None:
        bias.requires_grad_()
    y = partial_linear(x, bias, Held(weight), updates((indices,), (2.5,), (delta,)))
    y.backward(upstream(y))
    torch.testing.assert_close(y, y0, rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, grad_x, rtol=0, atol=1e-10)
    torch.testing.assert_close(delta.grad, grad_delta, rtol=0, atol=1e-10)
    if bias is not None:
        torch.testing.assert_close(bias.grad, grad_bias, rtol=0, atol=1e-10)


# Half a unit in the last place of the largest sums here, doubled for the two roundings (product, then cast).
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lower_precision_equals_it_within_rounding(dtype, shape):
    x, weight, bias, indices, delta = problem(dtype, shape, True)
    exact = reference(*(t.double() for t in (x, weight, bias)), indices, 1.0, delta)
    x.requires_grad_()
    delta.requires_grad_()
    bias.requires_grad_()
    y = partial_linear(x, bias, Held(weight), updates((indices,), (1.0,), (delta,)))
    y.backward(upstream(y))
    assert delta.grad.dtype == torch.float32
    for got, wanted in zip((y, x.grad, delta.grad, bias.grad), exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * 3)


def test_non_contiguous_input():
    x = torch.randn(IN, 6, dtype=torch.float64).t()
    assert not x.is_contiguous()
    _, weight, bias, indices, delta = problem(torch.float64, (1, IN), True)
    _, grad_x, grad_delta, _ = reference(x, weight, bias, indices, 1.0, delta)
    x = x.detach().requires_grad_()
    delta.requires_grad_()
    y = partial_linear(x, bias, Held(weight), updates((indices,), (1.0,), (delta,)))
    y.backward(upstream(y))
    torch.testing.assert_close(x.grad, grad_x, rtol=0, atol=1e-10)
    torch.testing.assert_close(delta.grad, grad_delta, rtol=0, atol=1e-10)


def test_gradcheck():
    """Numerical derivatives; the column's value has to be in the weight, which the wrapper here writes."""
    x, weight, bias, indices, delta = problem(torch.float64, (2, 3, IN), True)

    def layer(x, bias, delta):
        shown = weight.index_add(1, indices, 0.5 * delta.detach())
        return partial_linear(x, bias, Held(shown), updates((indices,), (0.5,), (delta,)))

    inputs = [t.requires_grad_() for t in (x, bias, delta)]
    assert torch.autograd.gradcheck(layer, inputs)


def test_gradcheck_of_two_adapters_that_share_a_column():
    x, weight, bias, indices, delta = problem(torch.float64, (2, 3, IN), True)
    others, other = torch.tensor([0, 5]), torch.zeros(OUT, 2, dtype=torch.float64)

    def layer(x, delta, other):
        shown = weight.index_add(1, indices, 0.5 * delta.detach()).index_add(1, others, 2 * other.detach())
        return partial_linear(x, bias, Held(shown), updates((indices, others), (0.5, 2.0), (delta, other)))

    assert torch.autograd.gradcheck(layer, [t.requires_grad_() for t in (x, delta, other)])


def test_gradcheck_notices_a_wrong_scaling():
    """Negative control: what the checks above would say of a gradient that is off by the scaling."""
    x, weight, bias, indices, delta = problem(torch.float64, (3, IN), True)

    def layer(delta):
        shown = weight.index_add(1, indices, 0.5 * delta.detach())
        return partial_linear(x, bias, Held(shown), updates((indices,), (1.0,), (delta,)))

    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(layer, [delta.requires_grad_()])


def test_each_gradient_is_gated_by_its_own_input():
    x, weight, bias, indices, delta = problem(torch.float64, (3, IN), True)
    bias.requires_grad_()
    y = partial_linear(x, bias, Held(weight), updates((indices,), (1.0,), (delta,)))
    y.backward(upstream(y))
    assert x.grad is None
    assert delta.grad is None
    torch.testing.assert_close(bias.grad, upstream(y).sum(0))


def test_a_second_derivative_is_refused_not_wrong():
    x, weight, bias, indices, delta = problem(torch.float64, (3, IN), True)
    delta.requires_grad_()
    x.requires_grad_()
    y = partial_linear(x, bias, Held(weight), updates((indices,), (1.0,), (delta,)))
    (grad,) = torch.autograd.grad(y.square().sum(), delta, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_only_the_selected_slice_is_kept():
    x, weight, bias, indices, delta = problem(torch.float32, (50, IN), True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        partial_linear(x.requires_grad_(), bias, Held(weight), updates((indices,), (1.0,), (delta.requires_grad_(),)))
    assert [t.shape for t in kept] == [(50, R)]


def test_frozen_columns_keep_nothing():
    x, weight, bias, indices, delta = problem(torch.float32, (50, IN), True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        partial_linear(x.requires_grad_(), bias, Held(weight), updates((indices,), (1.0,), (delta,)))
    assert not kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_the_plain_layer_gives_under_autocast(dtype):
    x, weight, bias, indices, delta = problem(torch.float32, (9, IN), True)
    with torch.autocast("cpu", dtype=dtype):
        _, grad_x, grad_delta, grad_bias = reference(x, weight, bias, indices, 1.0, delta)
        x.requires_grad_()
        bias.requires_grad_()
        delta.requires_grad_()
        y = partial_linear(x, bias, Held(weight), updates((indices,), (1.0,), (delta,)))
        y.backward(upstream(y))
        assert y.dtype == dtype
        torch.testing.assert_close(y, nn.functional.linear(x, weight, bias), rtol=0, atol=0)
    assert (x.grad.dtype, delta.grad.dtype, bias.grad.dtype) == (torch.float32,) * 3
    torch.testing.assert_close(x.grad, grad_x, rtol=0, atol=0)
    torch.testing.assert_close(delta.grad, grad_delta, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(bias.grad, grad_bias, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("r", [1, 8, 12, 13, 64])
@pytest.mark.parametrize(("tokens", "out"), [(0, OUT), (1, OUT), (32, OUT), (64, 1024)])
def test_column_gradient_is_the_same_product_in_either_order(r, tokens, out):
    grad_output, x = torch.randn(tokens, out, dtype=torch.float64), torch.randn(tokens, r, dtype=torch.float64)
    gradient = column_gradient(grad_output, x)
    assert gradient.shape == (out, r)
    torch.testing.assert_close(gradient, torch.einsum("to,tr->or", grad_output, x), rtol=0, atol=1e-12)


def test_theorem_1_descent():
    """Gradient descent on the columns alone lowers the loss by at least η(1 − Lη/2)·‖∇‖² in each step (Theorem 1).

    Least squares has a Hessian that is constant, so its Lipschitz constant is known: `2/n · λmax(XᵀX)`.
    """
    x, weight, _, indices, _ = problem(torch.float64, (40, IN), False)
    target = torch.randn(40, OUT, dtype=torch.float64)
    lipschitz = 2 * torch.linalg.eigvalsh(x.T @ x)[-1] / x.shape[0]
    delta = torch.zeros(OUT, R, dtype=torch.float64, requires_grad=True)

    def loss():
        shown = weight.index_add(1, indices, delta.detach())
        y = partial_linear(x, None, Held(shown), updates((indices,), (1.0,), (delta,)))
        return (y - target).square().sum() / x.shape[0]

    for share in (0.1, 0.5, 1.0, 1.5, 1.9):
        step = share / lipschitz
        before = loss()
        (gradient,) = torch.autograd.grad(before, delta)
        with torch.no_grad():
            delta -= step * gradient
        promised = step * (1 - lipschitz * step / 2) * gradient.square().sum()
        assert promised > 0
        assert before - loss() >= promised - 1e-12
