"""Frozen batch normalisation computes what the pretrained layer does in evaluation, and keeps nothing for backward."""

import copy

import pytest
import timm
import torch
from torch import nn

from paca import PacaError
from paca.profiling import kept_for_backward
from paca.workbench.vision.batch_norm import batch_norm_names, freeze_batch_norm

KINDS = {
    "1-D": (nn.BatchNorm1d, (4, 6)),
    "2-D": (nn.BatchNorm2d, (4, 6, 5, 3)),
    "3-D": (nn.BatchNorm3d, (2, 6, 3, 2, 4)),
    "activated": (timm.layers.BatchNormAct2d, (4, 6, 5, 3)),
    "not affine": (lambda channels: nn.BatchNorm2d(channels, affine=False), (4, 6, 5, 3)),
}


def layer(kind):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    model = nn.Sequential(make(6)).double()
    for tensor in (*model.parameters(), model[0].running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(model[0].running_var, 0.5, 2)
    return model, torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_layer_in_evaluation(kind):
    model, x = layer(kind)
    wanted = model.eval()(x)
    upstream = torch.randn_like(wanted)
    (wanted_x,) = torch.autograd.grad(wanted, x, upstream)
    state = copy.deepcopy(model.state_dict())
    frozen = freeze_batch_norm(model).train()
    found = frozen(x)
    (found_x,) = torch.autograd.grad(found, x, upstream)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found_x, wanted_x, rtol=0, atol=1e-12)
    assert all(torch.equal(frozen.state_dict()[key], value) for key, value in state.items())
    assert not list(frozen.parameters())
    assert not torch.allclose(KINDS[kind][0](6).double()(x), wanted), "normalising by the batch is something else"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_input_is_kept_and_its_dtype_stays(dtype):
    model, x = layer("2-D")
    model, x = freeze_batch_norm(model.float()), x.detach().to(dtype).requires_grad_()
    assert model(x).dtype == dtype
    assert kept_for_backward(lambda: model(x * 1)) <= 4 * 6 * 4
    assert kept_for_backward(lambda: nn.BatchNorm2d(6)(x.float() * 1)) >= x.numel() * 4, (
        "a plain layer keeps its input"
    )


def test_a_network_computes_the_same():
    network = timm.create_model("test_efficientnet", num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    wanted = network(x)
    names = batch_norm_names(network)
    assert len(names) > 5
    assert batch_norm_names(freeze_batch_norm(network)) == []
    torch.testing.assert_close(network.train()(x), wanted, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_frozen_is_named():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(nn.BatchNorm2d(3), Odd(3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(PacaError, match=r"1, 2 \(Odd\) can't be frozen; set images\.batch_norm=train"):
        freeze_batch_norm(model)
    assert batch_norm_names(model) == ["0", "1", "2"], "nothing was touched"
