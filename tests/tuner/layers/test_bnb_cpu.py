"""On some CPUs bitsandbytes repacks 4-bit weights, and dequantizes some shapes wrong; ours are right on every CPU."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, dequantize_4bit, quantize_4bit
from peft import get_peft_model
from torch import nn

from paca import PacaConfig
from paca.tuner.layers.bnb_cpu import apply_cpu_workarounds
from paca.tuner.layers.bnb_weight import dequantized_4bit, packed_as_saved

# The values that the sixteen codes stand for, before a block's scale.
NF4_NEGATIVE = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105003)
NF4_POSITIVE = (0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
FP4_MAGNITUDES = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
CODES = {
    "nf4": (*NF4_NEGATIVE, *NF4_POSITIVE),
    "fp4": (*FP4_MAGNITUDES, *(-value for value in FP4_MAGNITUDES)),
}
WIDTHS = (16, 32, 48, 64, 80, 96, 128, 160, 224)


@pytest.fixture(params=[False, True], ids=["one level", "double"])
def layer(request):
    packed = bnb.nn.Linear4bit(128, 64, False, torch.float32, compress_statistics=request.param, quant_type="nf4")
    packed.load_state_dict(nn.Linear(128, 64, bias=False).state_dict())
    return packed.to("cpu").eval()


def test_a_forward_without_gradients_leaves_bytes_and_gradients(layer):
    apply_cpu_workarounds(layer)
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
    apply_cpu_workarounds(module)
    assert not hasattr(module, "support_avx512bf16_for_cpu")


def by_hand(packed, state):
    """The matrix by the code book: each byte is two codes, the first in its upper half, and blocks span rows."""
    scales = state.absmax
    if state.nested:
        coarse = state.state2
        scales = coarse.code[scales.long()] * coarse.absmax.repeat_interleave(coarse.blocksize)[: len(scales)]
        scales = scales + state.offset
    codes = torch.stack((packed.view(-1) >> 4, packed.view(-1) & 15), 1).view(-1).long()
    values = torch.tensor(CODES[state.quant_type])[codes]
    return (values * scales.repeat_interleave(state.blocksize)[: len(values)]).view(state.shape)


def assert_same(got, wanted, dtype=torch.float32, terms=1):
    """Equal but for `terms` roundings to the dtype."""
    spread = terms * torch.finfo(dtype).eps
    torch.testing.assert_close(got.float(), wanted.float(), rtol=spread, atol=spread * float(wanted.abs().max()))


@pytest.mark.parametrize("double", [False, True], ids=["one level", "double"])
@pytest.mark.parametrize("quant_type", CODES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [3, 64])  # of three rows the last block is not full
def test_dequantized_values_are_those_of_the_code_book(rows, width, quant_type, double):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).to(dtype)
        for blocksize in (32, 64, 128, 256):
            packed, state = quantize_4bit(
                weight, blocksize=blocksize, quant_type=quant_type, compress_statistics=double
            )
            got = dequantized_4bit(packed, state)
            assert got.dtype == dtype
            assert_same(got, by_hand(packed, state), dtype, terms=2)
            assert float((got - weight).norm() / weight.norm()) < 0.25  # it is the matrix that was quantized


def quantized_pair(width, quant_type, double):
    """Two 4-bit layers, `width` to 48 and back, with their scales in blocks of 64."""
    torch.manual_seed(0)
    options = {"compute_dtype": torch.float32, "compress_statistics": double, "quant_type": quant_type}
    plain = nn.Sequential(nn.Linear(width, 48), nn.Linear(48, width))
    packed = nn.Sequential(
        bnb.nn.Linear4bit(width, 48, **options),
        bnb.nn.Linear4bit(48, width, **options),
    )
    packed.load_state_dict(plain.state_dict())
    return packed.to("cpu")


def reference(model, x, updates=None):
    """Outputs and input gradients over matrices made by hand."""
    x = x.detach().requires_grad_()
    y = x
    for place, layer in enumerate(model):
        matrix = by_hand(layer.weight.data, layer.weight.quant_state)
        y = nn.functional.linear(y, matrix if updates is None else matrix + updates[place], layer.bias)
    return y, *torch.autograd.grad(y.sum(), x)


def outputs(model, x):
    x = x.detach().requires_grad_()
    y = model(x)
    return y, *torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("double", [False, True], ids=["one level", "double"])
@pytest.mark.parametrize("quant_type", CODES)
@pytest.mark.parametrize("width", WIDTHS)
def test_layers_compute_with_the_matrix_of_the_code_book(width, quant_type, double):
    plain = quantized_pair(width, quant_type, double)
    x = torch.randn(5, width)
    config = PacaConfig(r=4, target_modules=["0"], init_weights=False, random_seed=0)
    model = get_peft_model(copy.deepcopy(plain), config)
    layer = model.base_model.model[0]
    update = torch.zeros(48, width).index_add(1, layer.paca_indices["default"], layer.paca_delta["default"].detach())
    updates = (layer.scaling["default"] * update, 0)

    def assert_all_same(model, wanted):
        for got, expected in zip(outputs(model, x), wanted, strict=True):
            assert_same(got, expected, terms=width + 48)

    assert_all_same(model, reference(plain, x, updates))
    assert not torch.allclose(model(x), reference(plain, x)[0], rtol=1e-2)  # the control
    with model.disable_adapter():
        assert_all_same(model, reference(plain, x))
    for each in plain.eval():
        apply_cpu_workarounds(each)
    with torch.inference_mode():
        alone = plain(x)
    assert_same(alone, reference(plain, x)[0], terms=width + 48)
    exact = by_hand(plain[0].weight.data, plain[0].weight.quant_state) + updates[0]
    assert_same(layer.adapted_matrix(torch.float32), exact, terms=4)
    model.merge_adapter()
    merged = [part.base_layer if part is layer else part for part in model.base_model.model]
    assert_all_same(model, reference(merged, x))
    assert float((by_hand(merged[0].weight.data, merged[0].weight.quant_state) - exact).norm() / exact.norm()) < 0.15


def test_a_layer_whose_rows_end_within_blocks_stays_one_of_bitsandbytes(tmp_path):
    model = get_peft_model(quantized_pair(80, "nf4", True), PacaConfig(r=4, target_modules=["0"], init_weights=False))
    layer = model.base_model.model[0].base_layer
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert type(layer).__name__ == "Linear4bit"
    x = torch.randn(3, 80)
    torch.save(model, tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
    for other in (copy.deepcopy(model), loaded):
        assert torch.equal(other(x), model(x))
        assert isinstance(other.base_model.model[0].base_layer.weight, bnb.nn.Params4bit)
