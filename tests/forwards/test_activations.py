"""Which modules are known to be elementwise, and by which function."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from paca.forwards.activations import activation_of, is_activation

X = torch.linspace(-3, 3, 13)
WITH_PARAMETERS = ("prelu", "xielu")


@pytest.mark.parametrize("name", [name for name in ACT2FN if name not in WITH_PARAMETERS])
def test_the_function_and_its_derivative_are_the_modules(name):
    module = ACT2FN[name]
    if not is_activation(module):
        pytest.skip("not of transformers' own elementwise functions")
    activation = activation_of(module)
    x = X.clone().requires_grad_()
    y = module(x)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(activation.function(X), y.detach())
    assert torch.equal(activation.gradient(torch.ones_like(X), X), wanted)


@pytest.mark.parametrize("module", [nn.PReLU(), nn.Softmax(-1), nn.Linear(2, 2), nn.Dropout()], ids=repr)
def test_others_are_not_known(module):
    assert not is_activation(module)
    assert activation_of(module) is None


def test_watched_ones_are_not_used():
    module = nn.SiLU()
    assert activation_of(module) is not None
    module.register_forward_pre_hook(lambda *_: None)
    assert activation_of(module) is None
