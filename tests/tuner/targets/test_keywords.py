"""`target_modules="all-weights"`: what it adapts, what it leaves alone, and what it says of both."""

import logging

import pytest
import timm
import torch
import torchvision
import transformers
from peft import PeftModel, TaskType, get_peft_model
from tests.toys import layers
from tests.tuner.layers.test_experts import DECODER, batch, plain_model
from torch import nn

from paca import PacaConfig, PacaError
from paca.tuner.targets.keywords import head_names


def adapted(model, **options):
    return get_peft_model(model, PacaConfig(**{"r": 2, "target_modules": "all-weights", **options}))


def vit(**options):
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    return transformers.ViTForImageClassification(config)


def llama(**options):
    shape = {key: value for key, value in DECODER.items() if "expert" not in key and "moe" not in key}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **options))


HEADS = {
    "a language model": (llama, {"lm_head"}),
    "a classifier of transformers": (vit, {"classifier"}),
    "a network of timm": (lambda: timm.create_model("test_convnext"), {"head.fc"}),
    "a bare network of timm": (lambda: timm.create_model("test_convnext", num_classes=0), set()),
    "one sequence of layers": (torchvision.models.squeezenet1_1, {"classifier.1"}),
    "layers before the last": (lambda: torchvision.models.mobilenet_v3_small(width_mult=0.25), {"classifier.3"}),
    "without a name that tells": (lambda: nn.Sequential(nn.Linear(4, 4)), set()),
}


@pytest.mark.parametrize(("make", "heads"), HEADS.values(), ids=HEADS)
def test_heads(make, heads):
    assert {name for name in head_names(make()) if name in heads} == heads
    with torch.device("meta"):
        model = make()
    layered = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    assert head_names(model) & layered == heads


def test_a_mixture_of_experts_is_adapted_but_for_its_routers(caplog):
    with caplog.at_level(logging.INFO, logger="paca"):
        model = adapted(plain_model())
    config = model.peft_config["default"]
    assert config.target_parameters == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert len(layers(model)) == 2 * (4 + 2)
    message = caplog.records[0].getMessage()
    assert message.startswith("target_modules='all-weights' adapts 8 Linear, 4 fused expert weights; left alone: ")
    assert "the head (lm_head)" in message
    model(**batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_routers_that_are_linear_layers_are_left_alone(caplog):
    plain = transformers.HunYuanMoEV1ForCausalLM(transformers.HunYuanMoEV1Config(**DECODER, moe_topk=[2, 2]))
    with caplog.at_level(logging.INFO, logger="paca"):
        model = adapted(plain)
    assert "routers (model.layers.0.mlp.gate.wg, model.layers.1.mlp.gate.wg)" in caplog.text
    assert not any("gate.wg" in name for name in layers(model))


def test_tied_weights_are_left_alone(caplog):
    model = llama(tie_word_embeddings=True)
    model.again = nn.Linear(*reversed(model.model.layers[0].mlp.up_proj.weight.shape), bias=False)
    model.model.extra = model.again
    model.model.again = nn.Linear(32, 48, bias=False)
    model.model.again.weight = model.model.layers[0].mlp.up_proj.weight
    with caplog.at_level(logging.INFO, logger="paca"):
        found = layers(adapted(model))
    assert not {"lm_head", "model.embed_tokens", "model.again", "model.layers.0.mlp.up_proj"} & found.keys()
    assert "model.layers.1.mlp.up_proj" in found
    assert "tied weights (model.layers.0.mlp.up_proj, model.again)" in caplog.text


def test_modules_to_save_and_excluded_ones_are_not_adapted():
    model = adapted(vit(), modules_to_save=["classifier", "dense"], exclude_modules=["projection"])
    names = layers(model).keys()
    assert not [name for name in names if "dense" in name or "projection" in name or "classifier" in name]
    assert [name for name in names if name.endswith(("query", "fc1", "q_proj"))]


def test_what_cannot_be_adapted_is_left_out_and_named():
    model = nn.Sequential()
    model.add_module("one", nn.Conv2d(4, 4, 3))
    model.add_module("two", nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)))
    with pytest.warns(UserWarning, match=r"leaves out 1 layers that cannot be adapted: two: its weight is computed"):
        assert set(layers(adapted(model))) == {"one"}


def test_embeddings_are_not_adapted_unasked():
    assert not [name for name in layers(adapted(llama())) if "embed" in name]


def test_a_rank_that_is_too_large_is_an_error_by_default_also_for_experts():
    with pytest.raises(
        PacaError, match=r"r=20 does not fit .*mlp\.experts\.down_proj, which has 16 .*clamp_rank=True"
    ):
        adapted(plain_model("Qwen3-MoE"), r=20)
    model = adapted(plain_model("Qwen3-MoE"), r=20, clamp_rank=True)
    ranks = {name.rpartition(".")[2]: layer.r["default"] for name, layer in layers(model).items()}
    assert set(ranks.values()) == {20, 16}


def test_saved_it_is_loaded_by_names_and_a_second_adapter_can_say_it_again(tmp_path):
    torch.manual_seed(0)
    model = adapted(vit(), init_weights=False)
    model.add_adapter("other", PacaConfig(r=2, target_modules="all-weights", task_type=TaskType.FEATURE_EXTRACTION))
    assert {len(layer.paca_delta) for layer in layers(model).values()} == {2}
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    torch.manual_seed(0)
    fresh = PeftModel.from_pretrained(vit(), tmp_path)
    assert layers(fresh).keys() == layers(model).keys()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(fresh.eval()(x).logits, model.eval()(x).logits)
