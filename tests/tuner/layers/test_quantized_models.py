"""Quantized models as transformers loads them: preparation for training, merging, saving, reloading."""

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils import quantization_utils
from tests.toys import in_named_precision, layers, trained
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

import paca
from paca import PacaConfig
from paca.tuner.layers import QuantizedLinear, quantized

from ..test_column_source import IDS, llama

SETTINGS = {
    "NF4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "torchao": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
}
settings = pytest.mark.parametrize("setting", SETTINGS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    llama().save_pretrained(folder)
    return folder


def load(folder, setting, dtype=torch.float32):
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=SETTINGS[setting](), dtype=dtype)
    return in_named_precision(loaded)


def config(**options):
    return PacaConfig(**{"r": 4, "target_modules": "all-linear", "random_seed": 0, "init_weights": False, **options})


def losses(model, steps=4):
    optimizer = torch.optim.AdamW(trained(model), lr=0.01)
    found = []
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@settings
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepared_for_kbit_training_it_trains_with_checkpointing(checkpoint, setting, reentrant, dtype):
    base = load(checkpoint, setting, dtype)
    base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model = get_peft_model(base, config()).train()
    assert len(layers(model)) == 14
    assert {type(layer) for layer in layers(model).values()} == {QuantizedLinear}
    assert base.is_gradient_checkpointing
    curve = losses(model)
    assert curve[-1] < curve[0]
    if setting != "torchao":  # PEFT leaves the norms of a torchao model as they are
        assert base.model.norm.weight.dtype == torch.float32


@settings
def test_checkpointing_changes_no_gradient(checkpoint, setting):
    gradients = []
    for use in (False, True):
        base = prepare_model_for_kbit_training(load(checkpoint, setting), use_gradient_checkpointing=use)
        torch.manual_seed(1)
        model = get_peft_model(base, config()).train()
        model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in trained(model)])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@settings
def test_merged_into_an_ordinary_model_that_transformers_reloads(checkpoint, setting, tmp_path):
    model = get_peft_model(load(checkpoint, setting), config()).eval()
    losses(model, 2)
    wanted = model(IDS).logits
    merged = model.merge_and_dequantize(torch.float32)
    merged.save_pretrained(tmp_path)
    assert "quantization_config" not in merged.config.to_dict()
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {type(module) for module in reloaded.modules()} & {nn.Linear}
    assert not [module for module in reloaded.modules() if quantized.comes_quantized(module)]
    torch.testing.assert_close(reloaded(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    sixteen = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert sixteen.dtype == torch.bfloat16
    assert get_peft_model(reloaded, config()) is not None


@pytest.mark.parametrize("setting", ["NF4", "int8"])
def test_merged_into_the_quantized_format_and_saved(checkpoint, setting, tmp_path):
    model = get_peft_model(load(checkpoint, setting), config()).eval()
    merged = model.merge_and_unload()
    wanted = merged(IDS).logits
    merged.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reloaded.is_quantized
    torch.testing.assert_close(in_named_precision(reloaded)(IDS).logits, wanted, rtol=1e-3, atol=1e-3)


@settings
def test_an_adapter_saved_and_loaded_gives_the_same_logits(checkpoint, setting, tmp_path):
    model = get_peft_model(load(checkpoint, setting), config()).eval()
    losses(model, 2)
    wanted = model(IDS).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(load(checkpoint, setting), tmp_path).eval()(IDS).logits, wanted)


class Packed(nn.Module):
    """A linear layer of a format that nobody can unpack."""

    def __init__(self, into, out):
        super().__init__()
        self.in_features, self.out_features = into, out
        self.qweight = nn.Parameter(torch.randint(-9, 9, (out, into), dtype=torch.int8), requires_grad=False)
        self.register_buffer("scales", torch.rand(out, 1) / 50)
        self.register_buffer("bias", torch.randn(out))

    def forward(self, x):
        return nn.functional.linear(x, self.qweight * self.scales, self.bias)


@pytest.fixture
def forward_only(monkeypatch):
    """PEFT takes `Packed` for a format that it can run, but not unpack, as GPTQ and AWQ."""
    monkeypatch.setattr(quantized, "comes_quantized", lambda module: isinstance(module, Packed))
    monkeypatch.setattr(paca.tuner.layers.kinds, "comes_quantized", lambda module: isinstance(module, Packed))
    backend = quantization_utils.ForwardOnlyQuantizationBackend("gptq")
    monkeypatch.setattr(quantized, "resolve_quantization_backend", lambda module, **_: backend)


@pytest.mark.usefixtures("forward_only")
def test_a_format_that_cannot_be_unpacked_is_adapted_beside_it(tmp_path):
    base = nn.Sequential(Packed(12, 8))
    model = get_peft_model(base, config(target_modules=["0"]))
    layer = layers(model)["0"]
    x = torch.randn(5, 12, requires_grad=True)
    y = model(x)
    weight = layer.base_layer.qweight * layer.base_layer.scales
    weight = weight.index_add(1, layer.paca_indices["default"], layer.paca_delta["default"])
    wanted = nn.functional.linear(x, weight, layer.base_layer.bias)
    torch.testing.assert_close(y, wanted)
    wrt = [x, layer.paca_delta["default"]]
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), wrt), torch.autograd.grad(wanted.square().sum(), wrt)
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(paca.PacaError, match=r"Cannot merge into a gptq layer: PEFT cannot pack .*merge_and_dequant"):
        model.merge_adapter()
    layer.set_columns("default", torch.ones(8, 4))  # as from a checkpoint
    y = model(x)
    wanted = weight.detach().clone()
    wanted[:, layer.paca_indices["default"]] = 1 + layer.paca_delta["default"].detach()
    torch.testing.assert_close(y, nn.functional.linear(x, wanted, layer.base_layer.bias))
    merged = model.merge_and_dequantize(torch.float32)
    torch.testing.assert_close(merged(x), y)
