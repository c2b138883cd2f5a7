"""On some CPUs bitsandbytes repacks 4-bit weights; a layer that is told not to stays as it was packed."""

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, dequantize_4bit
from torch import nn

from paca.tuner.layers.bnb_cpu import keep_packing, packed_as_saved


@pytest.fixture(params=[False, True], ids=["one level", "double"])
def layer(request):
    packed = bnb.nn.Linear4bit(128, 64, False, torch.float32, compress_statistics=request.param, quant_type="nf4")
    packed.load_state_dict(nn.Linear(128, 64, bias=False).state_dict())
    return packed.to("cpu").eval()


def test_a_forward_without_gradients_leaves_bytes_and_gradients(layer):
    keep_packing(layer)
    before = layer.weight.data.clone()
    with torch.no_grad():
        layer(torch.randn(3, 128))
    assert torch.equal(layer.weight.data, before)
    x = torch.randn(3, 128, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, dequantize_4bit(before, layer.weight.quant_state).sum(0).expand(3, -1))


def test_a_repacked_weight_comes_back_with_its_scales_rounded(layer):
    before, wanted = layer.weight.data.clone(), dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    data, state = packed_as_saved(layer.weight)
    assert torch.equal(data, before)
    assert layer.weight.quant_state.packing_format_for_cpu
    torch.testing.assert_close(dequantize_4bit(data, state), wanted, rtol=2**-8, atol=0)


def test_other_modules_are_passed_over():
    module = nn.Linear(2, 2)
    keep_packing(module)
    assert not hasattr(module, "support_avx512bf16_for_cpu")
