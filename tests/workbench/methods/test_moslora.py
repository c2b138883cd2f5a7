"""MosLoRA against its formula, and what PEFT does with it: saving, loading, merging, disabling."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from paca import PacaError
from paca.workbench.methods.moslora import MosLoraConfig, MosLoraLinear


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 6, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.fixture
def plain():
    return Toy().double()


def adapted(plain, **fields):
    config = MosLoraConfig(r=3, lora_alpha=6, target_modules=["first", "second"], **fields)
    model = get_peft_model(copy.deepcopy(plain), config, autocast_adapter_dtype=False)
    return model.double()


def trained(plain, **fields):
    model = adapted(plain, **fields)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return model


def formula(plain, model):
    """`W + s·B M A`, written out."""
    expected = copy.deepcopy(plain)
    for name in ("first", "second"):
        layer = model.base_model.model.get_submodule(name)
        a, m, b = (getattr(layer, part)["default"].weight for part in ("lora_A", "lora_mixer", "lora_B"))
        expected.get_submodule(name).weight.data += 2.0 * (b @ m @ a).detach()
    return expected


def test_outputs_and_gradients_are_those_of_the_formula(plain):
    model, x = trained(plain), torch.randn(4, 8, dtype=torch.float64)
    expected = formula(plain, model)
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=1e-10)
    assert not torch.allclose(model(x), plain(x)), "the adapter does something"
    model(x).square().sum().backward()
    expected(x).square().sum().backward()
    layer, weight = model.base_model.model.second, expected.second.weight
    a, m, b = (getattr(layer, part)["default"].weight for part in ("lora_A", "lora_mixer", "lora_B"))
    torch.testing.assert_close(m.grad, 2.0 * b.T @ weight.grad @ a.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(b.grad, 2.0 * weight.grad @ (m @ a).T, rtol=0, atol=1e-9)
    torch.testing.assert_close(a.grad, 2.0 * (b @ m).T @ weight.grad, rtol=0, atol=1e-9)


def test_it_starts_as_the_pretrained_model_and_trains_every_part(plain):
    model, x = adapted(plain), torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)
    mixer = model.base_model.model.first.lora_mixer["default"].weight
    torch.testing.assert_close(mixer @ mixer.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted == 3 * (8 + 12 + 3) + 3 * (12 + 6 + 3)


@pytest.mark.parametrize("safe", [True, False])
def test_merging_gives_the_formulas_weights_and_unmerging_takes_them_back(plain, safe):
    model, x = trained(plain), torch.randn(4, 8, dtype=torch.float64)
    expected = formula(plain, model)
    model.merge_adapter(safe_merge=safe)
    torch.testing.assert_close(
        model.base_model.model.first.base_layer.weight, expected.first.weight, rtol=0, atol=1e-10
    )
    model.unmerge_adapter()
    torch.testing.assert_close(model.base_model.model.first.base_layer.weight, plain.first.weight, rtol=0, atol=1e-12)
    merged = model.merge_and_unload(safe_merge=safe)
    assert not any(isinstance(module, MosLoraLinear) for module in merged.modules())
    torch.testing.assert_close(merged(x), expected(x), rtol=0, atol=1e-10)


def test_a_saved_adapter_is_loaded_with_its_mixers(plain, tmp_path):
    model, x = trained(plain), torch.randn(4, 8, dtype=torch.float64)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path, autocast_adapter_dtype=False)
    torch.testing.assert_close(loaded.double()(x), model(x), rtol=0, atol=1e-12)
    with loaded.disable_adapter():
        torch.testing.assert_close(loaded(x), plain(x), rtol=0, atol=0)


def test_a_second_adapter_has_a_mixer_of_its_own(plain):
    model = trained(plain)
    x = torch.randn(4, 8, dtype=torch.float64)
    before = model(x)
    model.add_adapter("other", MosLoraConfig(r=2, target_modules=["first"]))
    assert model.base_model.model.first.lora_mixer["other"].weight.shape == (2, 2)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    model.set_adapter("other")
    torch.testing.assert_close(model.double()(x), plain(x), rtol=0, atol=1e-6)


def test_other_layers_are_refused():
    model = nn.Sequential(nn.Conv1d(4, 4, 3))
    with pytest.raises(PacaError, match=r"MosLoRA adapts nn.Linear only, got Conv1d; name linear layers"):
        get_peft_model(model, MosLoraConfig(r=2, target_modules=["0"]))
