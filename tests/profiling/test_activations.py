"""What single layers keep for their backward pass, checked against what their derivatives need."""

import gc

import pytest
import torch
from torch import nn

from paca.profiling import kept_for_backward

BATCH, INPUTS, OUTPUTS = 4, 64, 32
INPUT_BYTES = BATCH * INPUTS * 4


@pytest.fixture
def x():
    return torch.ones(BATCH, INPUTS, requires_grad=True)


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


def test_a_frozen_linear_keeps_nothing(x):
    layer = frozen(nn.Linear(INPUTS, OUTPUTS))
    assert kept_for_backward(lambda: layer(x * 2)) == 0


def test_a_trainable_linear_keeps_its_input(x):
    layer = nn.Linear(INPUTS, OUTPUTS)
    assert kept_for_backward(lambda: layer(x * 2)) == INPUT_BYTES


def test_two_layers_keep_a_shared_input_once(x):
    layers = nn.ModuleList([nn.Linear(INPUTS, OUTPUTS) for _ in range(2)])

    def forward():
        shared = x * 2
        return layers[0](shared), layers[1](shared)

    assert kept_for_backward(forward) == INPUT_BYTES


def test_a_relu_keeps_its_output_and_only_while_it_is_needed(x):
    assert kept_for_backward(lambda: torch.relu(x * 2)) == INPUT_BYTES
    assert kept_for_backward(lambda: (x * 2) + 1) == 0


def test_a_function_that_saves_a_slice_keeps_the_slice(x):
    class KeepsTwoColumns(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x[:, :2].clone())
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    assert kept_for_backward(lambda: KeepsTwoColumns.apply(x * 2)) == BATCH * 2 * 4


def test_the_batch_itself_is_not_counted(x):
    layer = nn.Linear(INPUTS, OUTPUTS)
    assert kept_for_backward(lambda: layer(x)) == 0


def test_a_cache_that_outlives_the_graph_is_not_counted(x):
    cache = []

    def forward():
        cache.append(torch.ones(1000))
        return frozen(nn.Linear(INPUTS, OUTPUTS))(x * 2)

    kept_for_backward(forward)
    assert kept_for_backward(lambda: (cache.append(torch.ones(1000)), x * 2)[1]) == 0


def test_a_reference_cycle_does_not_inflate(x):
    layer = frozen(nn.Linear(INPUTS, OUTPUTS))

    def forward():
        cycle = [x * 3]
        cycle.append(cycle)
        return layer(x * 2)

    gc.disable()
    try:
        assert kept_for_backward(forward) == 0
    finally:
        gc.enable()


def test_outputs_in_containers_are_found(x):
    layer = nn.Linear(INPUTS, OUTPUTS)
    assert kept_for_backward(lambda: {"out": [layer(x * 2)], "note": "text"}) == INPUT_BYTES


def test_without_a_gradient_nothing_is_kept():
    layer = frozen(nn.Linear(INPUTS, OUTPUTS))
    assert kept_for_backward(lambda: layer(torch.ones(BATCH, INPUTS))) == 0


def test_an_output_without_tensors_is_refused_with_what_to_return():
    with pytest.raises(TypeError, match=r"returned float, in which there is no tensor.*return the loss"):
        kept_for_backward(lambda: 1.0)
