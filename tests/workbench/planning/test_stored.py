"""Weights that the configuration says are quantized: counted as they are stored, or refused; never taken for plain."""

import importlib.util
import json

import pytest
import torch
from tests.toys import tiny_llama_config

from paca.errors import PacaError
from paca.workbench.cli.main import main
from paca.workbench.planning.models import find_config
from paca.workbench.planning.recipes import recipe_setting
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner, build, measure
from paca.workbench.planning.stored import stored_quantization
from paca.workbench.recipe.recipe import read_recipe

pytestmark = pytest.mark.road("plans")

FOUR_BIT = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
NESTED = {**FOUR_BIT, "bnb_4bit_use_double_quant": True}
PARTLY = {**NESTED, "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp"]}
OTHERS = {
    "gptq in 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq in 4 bits": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "bitsandbytes int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}
has_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def saved(tmp_path):
    def save(quantization):
        content = tiny_llama_config(vocab_size=300).to_dict() | {"quantization_config": quantization}
        (tmp_path / "config.json").write_text(json.dumps(content))
        return str(tmp_path)

    return save


@has_bitsandbytes
@pytest.mark.parametrize("quantization", [FOUR_BIT, NESTED, PARTLY])
def test_four_bits_are_planned_as_they_are_stored(saved, quantization):
    config = find_config(saved(quantization))
    wanted = TrainingSetting("qpaca", 8, 2, 64, torch.float32, attention="sdpa")
    real = measure(build(config, wanted, "cpu"), wanted, warm_up=True).peak
    assert Planner(config).step(wanted).peak.total == pytest.approx(real.total, rel=0.01)


@has_bitsandbytes
def test_weights_are_counted_with_their_scales(saved):
    """Four bits of each value of two blocks, and a scale for each 64: in float32, or in 8 bits with a table."""
    values = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    weights = {}
    for name, quantization in (("plain", FOUR_BIT), ("nested", NESTED), ("partly", PARTLY)):
        planner = Planner(find_config(saved(quantization)))
        weights[name] = planner.step(TrainingSetting("qpaca", 8, 2, 64)).peak.by_category["parameters"]
    nested = weights["nested"] - 14 * (1024 + 4 + 4)  # a table, a scale and an offset for each of 14 layers
    assert weights["plain"] - nested == pytest.approx(3 * values / 64)
    assert weights["partly"] > weights["nested"] + 3 * 64 * 128


@has_bitsandbytes
@pytest.mark.parametrize("words", [(), ("--methods", "paca,lora")])
def test_methods_are_those_over_four_bits(saved, capsys, words):
    assert main(["plan", saved(NESTED), "--seq", "32", "--json", *words]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)["methods"]] == ["qpaca", "qlora"]


@pytest.mark.parametrize("method", ["dora", "full"])
def test_a_method_that_isn_t_counted_over_four_bits_is_refused(saved, capsys, method):
    assert main(["plan", saved(NESTED), "--methods", method]) == 2
    assert f"{method!r} over such weights isn't counted. Plan --methods qpaca qlora." in capsys.readouterr().err


@pytest.mark.parametrize("name", OTHERS)
def test_other_quantizations_are_refused_and_planned_as_plain_only_if_asked(saved, capsys, name):
    assert main(["plan", saved(OTHERS[name]), "--methods", "paca"]) == 2
    assert f"the weights are quantized ({name}), which isn't counted" in capsys.readouterr().err
    assert (
        main(["plan", saved(OTHERS[name]), "--methods", "paca", "--seq", "32", "--dtype", "bfloat16", "--json"]) == 0
    )
    said = capsys.readouterr()
    assert f"stored quantized ({name}), and planned as plain ones in bfloat16" in said.err
    plain = Planner(tiny_llama_config(vocab_size=300)).step(TrainingSetting("paca", tokens=32, block=512)).peak
    assert json.loads(said.out)["methods"][0]["total"] == plain.total


@pytest.mark.parametrize(("quantization", "method"), [(NESTED, "qpaca"), (OTHERS["fp8"], "paca")])
def test_a_recipe_over_such_a_model_is_planned_over_what_is_stored(saved, content, tmp_path, quantization, method):
    content["model"]["name"] = saved(quantization)
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    config = find_config(content["model"]["name"])
    setting = recipe_setting(read_recipe(tmp_path / "recipe.yaml"), config)
    assert setting.method == method
    if method == "paca":
        with pytest.raises(PacaError, match=r"quantized \(fp8\)"):
            build(config, setting)


def test_plain_weights_and_those_of_a_text_part():
    config = tiny_llama_config()
    assert stored_quantization(config) is None
    config.quantization_config = OTHERS["fp8"]
    assert stored_quantization(config).name == "fp8"
