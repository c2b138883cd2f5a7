"""A name in a method's config that no layer has is an error, even where others match."""

import pytest
import torch
from peft import LoraConfig
from tests.toys import tiny_llama_config
from tests.workbench.tiny import run, write_recipe
from tests.workbench.vision.tiny import recipe_content
from transformers import LlamaForCausalLM

from paca import PacaConfig, PacaError
from paca.workbench.cli.main import main
from paca.workbench.methods.catalogue import METHODS, AdapterSetting
from paca.workbench.methods.targets import check_targets

pytestmark = pytest.mark.road("problem-list")


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return LlamaForCausalLM(tiny_llama_config())


@pytest.mark.parametrize("method", [PacaConfig, LoraConfig])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"target_modules": ["q_proj", "v_porj"]},
            "method.target_modules: 'v_porj' matches no module; did you mean 'v_p",
        ),
        (
            {"target_modules": ["q_proj", "layers.9.v_proj"]},
            "method.target_modules: 'layers.9.v_proj' matches no module",
        ),
        (
            {"exclude_modules": ["lm_heda"]},
            "method.exclude_modules: 'lm_heda' matches no module; did you mean 'lm_head'",
        ),
        ({"modules_to_save": ["embed_tokenz"]}, "method.modules_to_save: 'embed_tokenz' matches no module"),
        ({"rank_pattern": {"q_proj": 2, "k_prj": 4}}, "method.rank_pattern: 'k_prj' matches no module; did you mean"),
        ({"alpha_pattern": {r"layers\.7\..*": 4}}, r"method.alpha_pattern: 'layers\\.7\\..*' matches no module"),
    ],
)
def test_what_matches_nothing(model, method, fields, message):
    with pytest.raises(PacaError) as caught:
        check_targets(model, method(**{"target_modules": ["q_proj"], **fields}))
    assert message in str(caught.value).replace("\\\\", "\\\\")
    good = {"modules_to_save": ["tokens"], "rank_pattern": {r"layers\.0\..*": 2}, "exclude_modules": ["lm_head"]}
    check_targets(model, method(target_modules=["q_proj", "layers.0.self_attn.v_proj"], **good))
    check_targets(model, method(target_modules="all-linear"))


@pytest.mark.parametrize("method", ["paca", "lora", "miss"])
def test_the_outputs_of_mlps_are_there_for_every_method(method):
    model = METHODS[method].put_on(LlamaForCausalLM(tiny_llama_config()), AdapterSetting(2, targets="mlp-out"))
    adapted = {name.partition("down_proj")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert len(adapted) == tiny_llama_config().num_hidden_layers
    assert all(name.endswith(".mlp.") for name in adapted)


@pytest.mark.parametrize("targets", ["all-linear", "mlp", ["q_proj", "down_proj"]])
@pytest.mark.parametrize("method", ["paca", "lora", "miss", "moslora"])
def test_the_upper_half_of_the_blocks_is_there_for_every_method(method, targets):
    setting = AdapterSetting(2, targets, blocks="upper-half")
    model = METHODS[method].put_on(LlamaForCausalLM(tiny_llama_config(num_hidden_layers=4)), setting)
    adapted = [name for name, value in model.named_parameters() if value.requires_grad]
    assert {name.partition("layers.")[2][0] for name in adapted} == {"2", "3"}
    ends = {"down_proj", "q_proj"} if isinstance(targets, list) else {"down_proj", "up_proj", "gate_proj"}
    assert all(any(f".{end}." in name for name in adapted) for end in ends)


@pytest.mark.parametrize("verb", ["finetune", "doctor", "select"])
def test_a_recipe_that_names_such_a_layer(content, tmp_path, capsys, verb):
    content["method"]["target_modules"] = ["q_proj", "v_porj"]
    assert main([verb, str(write_recipe(tmp_path / "recipe.yaml", content))]) == 2
    assert "method.target_modules: 'v_porj' matches no module; did you mean 'v_proj'" in capsys.readouterr().err


def test_an_image_recipe_that_names_such_a_layer(tiny_classifier, npz, tmp_path):
    content = recipe_content(tiny_classifier, npz, tmp_path / "run")
    content["method"]["target_modules"] = ["q_proj", "qurey", "v_proj"]
    with pytest.raises(PacaError, match=r"method\.target_modules: 'qurey' matches no module"):
        run(content, tmp_path)


def test_a_compared_method_that_names_such_a_layer(model):
    with pytest.raises(PacaError, match="'v_porj' matches no module"):
        METHODS["lora"].put_on(model, AdapterSetting(targets=["q_proj", "v_porj"]))
