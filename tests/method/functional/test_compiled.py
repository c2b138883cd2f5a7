"""Compiled products over adapted weights: no copy of a weight in the code, and the update of now in each call."""

import copy
import re
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from tests.toys import trained
from torch import nn
from torch._inductor.utils import run_and_get_code

from paca import PacaConfig
from paca.method.columns.layout import ConnectionMajorParameter
from paca.method.functional import compiled as compiled_ops
from paca.method.functional.compiled import (
    convolution_input_gradient_op,
    convolution_op,
    embedding_op,
    linear_input_gradient_op,
    linear_op,
)

WIDTH, ROWS = 256, 8


@pytest.fixture
def models():
    """A network, adapted, and its plain twin."""
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])
    names = ["0", "2", "4"]
    config = PacaConfig(r=4, target_modules=names, init_weights=False, random_seed=0)
    yield plain, get_peft_model(copy.deepcopy(plain), config)
    torch.compiler.reset()


def weight_sized(code):
    """Allocations and copies of as many elements as a weight has, in what the compiler has written."""
    sizes = re.findall(r"empty_strided\w*\(\((\d+), ?(\d*)", code)
    elements = [int(first) * int(second or 1) for first, second in sizes]
    return [count for count in elements if count >= WIDTH * WIDTH], re.findall(r"\.clone\(|copy_\(", code)


@pytest.mark.slow
@pytest.mark.parametrize("grad", [True, False])
def test_the_generated_code_holds_no_copy_of_a_weight(models, grad):
    plain, model = models
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True)

    def step():
        with torch.set_grad_enabled(grad):
            y = compiled(x)
        if grad:
            y.square().sum().backward()
        return y

    y, codes = run_and_get_code(step)
    assert len(codes) == (2 if grad else 1)
    assert [weight_sized(code) for code in codes] == [([], [])] * len(codes)
    assert "paca.linear" in codes[0]
    torch.testing.assert_close(y, model(x), rtol=0, atol=1e-4)
    assert not torch.allclose(y, plain(x), atol=1e-2)


@pytest.mark.slow
def test_five_compiled_steps_are_those_of_eager_and_the_weights_pretrained_after_each(models):
    plain, model = models
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(ROWS, WIDTH)
    curves = []
    for network, run in ((twin, twin), (model, compiled)):
        optimizer, curve = torch.optim.AdamW(trained(network), lr=1e-2, fused=True), []
        for _ in range(5):
            loss = run(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.item())
            for name in ("0", "2", "4"):
                layer = network.get_base_model().get_submodule(name)
                assert torch.equal(layer.base_layer.weight, plain.get_submodule(name).weight)
        curves.append(curve)
    torch.testing.assert_close(curves[1], curves[0], rtol=2e-6, atol=0)
    with torch.no_grad():
        before = compiled(x)
        trained(model)[0].zero_()
        assert not torch.allclose(compiled(x), before)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["whole", "one layer", "whole, after a reset"])
def test_compiling_after_eager_steps(models, part):
    """The weights lie in the layout of training by then, and code is made for the ordinary one.

    `torch.compiler.reset()` dropped the callback that lays them out for it, and the compilation failed.
    """
    plain, model = models
    twin = copy.deepcopy(model)
    x = torch.randn(ROWS, WIDTH)
    compiled = model
    optimizers = [torch.optim.SGD(trained(each), lr=1e-2) for each in (model, twin)]
    for number in range(4):
        if number == 2:
            assert type(model.base_model.model[0].base_layer.weight) is ConnectionMajorParameter
            if "reset" in part:
                torch.compiler.reset()
            if "whole" in part:
                compiled = torch.compile(model, fullgraph=True)
            else:
                model.base_model.model[0].compile()
        outputs = [each(x) for each in (compiled, twin)]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            output.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for layer in (0, 2, 4):
        assert torch.equal(model.base_model.model[layer].base_layer.weight, plain[layer].weight)


def operands(seed):
    """`X`, `W`, and an update's indices and `Δ`."""
    drawing = torch.Generator().manual_seed(seed)
    indices = torch.randperm(WIDTH, generator=drawing)[:4].sort().values
    return torch.randn(ROWS, WIDTH, generator=drawing), indices, torch.randn(WIDTH, 4, generator=drawing)


def with_columns(weight, indices, delta):
    adapted = weight.clone()
    adapted[:, indices] += delta
    return adapted


def test_threads_multiply_with_their_own_columns_over_one_weight():
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    pretrained = weight.clone()
    wrong = []

    def multiply(seed):
        x, indices, delta = operands(seed)
        adapted = with_columns(pretrained, indices, delta)
        for _ in range(50):
            y = linear_op(x, weight, None, [indices], [delta], [1.0])
            grad = linear_input_gradient_op(y, weight, [indices], [delta], [1.0])
            if not (torch.equal(y, F.linear(x, adapted)) and torch.equal(grad, y @ adapted)):
                wrong.append(seed)

    threads = [Thread(target=multiply, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.equal(weight, pretrained)


def test_one_weight_may_be_a_matrix_and_a_table():
    x, indices, delta = operands(2)
    weight = torch.randn(WIDTH, WIDTH)
    y = linear_op(x, weight, None, [indices], [delta], [1.0])
    assert torch.equal(y, F.linear(x, with_columns(weight, indices, delta)))
    rows = with_columns(weight.t(), indices, delta).t()
    assert torch.equal(embedding_op(indices, weight, [indices], [delta.t()], [1.0]), rows[indices])


def test_nothing_is_remembered_of_a_weight_that_is_gone():
    x, indices, delta = operands(0)
    weight = torch.randn(WIDTH, WIDTH)
    before = len(compiled_ops._COLUMNS)
    linear_op(x, weight, None, [indices], [delta], [1.0])
    linear_op(x, weight, None, [indices], [delta], [1.0])
    assert len(compiled_ops._COLUMNS) == before + 1
    del weight
    assert len(compiled_ops._COLUMNS) == before


def test_the_operators_are_what_torch_asks_of_them():
    x, indices, delta = operands(1)
    weight, updates = torch.randn(WIDTH, WIDTH), ([indices], [delta], [0.5])
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(linear_op, (x, weight, torch.randn(WIDTH), *updates), test_utils=checks)
    torch.library.opcheck(linear_input_gradient_op, (x, weight, *updates), test_utils=checks)
    torch.library.opcheck(
        embedding_op, (torch.arange(6).view(2, 3), weight, [indices], [delta.t()], [0.5]), test_utils=checks
    )
    images, kernel = torch.randn(2, WIDTH, 5, 5), torch.randn(8, WIDTH, 3, 3)
    update = ([indices], [torch.randn(8, 4, 3, 3)], [0.5])
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    torch.library.opcheck(convolution_op, (images, kernel, None, *geometry, *update), test_utils=checks)
    gradient = (torch.randn(2, 8, 5, 5), images, kernel, *geometry, *update)
    torch.library.opcheck(convolution_input_gradient_op, gradient, test_utils=checks)
