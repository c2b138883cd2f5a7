"""`layers_to_transform="upper-half"`: which layers it leaves, that backward ends there, and what it refuses."""

import re

import pytest
import timm
import torch
import torchvision
import transformers
from peft import PeftModel, get_peft_model
from tests.toys import layers, three_steps, tiny_llama_config, trained
from tests.tuner.layers.test_experts import plain_model
from torch import nn

from paca import PacaConfig, PacaError
from paca.profiling.steps import TrainingStep
from paca.tuner.config import UPPER_HALF
from paca.tuner.targets.blocks import upper_half

FOUR = {"num_hidden_layers": 4, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def llama(count=4):
    config = tiny_llama_config()
    config.num_hidden_layers = count
    return transformers.LlamaForCausalLM(config)


def bert():
    return transformers.BertModel(transformers.BertConfig(**FOUR))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=3, n_embd=16, n_head=2))


def plain():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


# A model, `target_modules`, and the blocks, or the modules in none, that have adapted layers.
MODELS = {
    "Llama": (llama, "all-linear", {"layers.2", "layers.3", "norm"}),
    "an odd number of blocks": (lambda: llama(5), "mlp", {"layers.2", "layers.3", "layers.4", "norm"}),
    "BERT, with a norm before its blocks": (bert, "all-linear", {"layer.2", "layer.3", "pooler"}),
    "GPT-2, by names": (gpt2, ["c_attn", "c_fc"], {"h.1", "h.2", "ln_f"}),
    "a regular expression": (llama, r".*\.(up|down)_proj", {"layers.2", "layers.3", "norm"}),
    "a ViT of timm": (lambda: timm.create_model("test_vit"), "mlp-out", {f"blocks.{n}" for n in (3, 4, 5)} | {"norm"}),
}


def block_of(name):
    found = re.match(r".*?(\w+\.\d+)", name)
    return found[1] if found else next(part for part in name.split(".") if part not in ("model", "transformer"))


@pytest.mark.parametrize(("make", "targets", "wanted"), MODELS.values(), ids=MODELS)
def test_the_upper_blocks_and_what_comes_after_are_adapted(make, targets, wanted):
    config = PacaConfig(r=2, target_modules=targets, layers_to_transform=UPPER_HALF, train_norms=True)
    found = set(layers(get_peft_model(make(), config)))
    assert {block_of(name) for name in found} == wanted
    whole = get_peft_model(make(), PacaConfig(r=2, target_modules=targets, train_norms=True))
    assert found == {name for name in layers(whole) if block_of(name) in wanted}
    names = config.target_modules
    assert set(names.replace("\\", "").split("|") if isinstance(names, str) else names) == found
    assert config.layers_to_transform is None


def test_a_list_that_is_the_model_itself_counts_all_its_modules():
    model = get_peft_model(plain(), PacaConfig(r=2, target_modules="all-linear", layers_to_transform=UPPER_HALF))
    assert set(layers(model)) == {"2", "4"}


def test_fused_experts_are_those_of_the_upper_half():
    config = PacaConfig(
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.down_proj"],
        layers_to_transform=UPPER_HALF,
    )
    model = get_peft_model(plain_model(), config)
    assert config.target_parameters == ["model.layers.1.mlp.experts.down_proj"]
    assert [name for name in layers(model) if "layers.0" in name] == []
    assert len(layers(model)) == 2


def test_a_budget_is_spent_there():
    whole = get_peft_model(llama(), PacaConfig(r=2, target_modules="all-linear"))
    budget = sum(value.numel() for value in trained(whole))
    config = PacaConfig(budget=budget, target_modules="all-linear", layers_to_transform=UPPER_HALF)
    assert sum(value.numel() for value in trained(get_peft_model(llama(), config))) == budget
    assert config.r == 4


def test_backward_ends_half_way_and_keeps_nothing_below():
    tokens = torch.randint(3, 32, (2, 5), generator=torch.Generator().manual_seed(0))

    def kept(**options):
        torch.manual_seed(0)
        model = get_peft_model(llama(), PacaConfig(r=2, target_modules="all-linear", random_seed=0, **options))
        reached = []
        for index, block in enumerate(model.get_base_model().model.layers):
            block.register_full_backward_hook(lambda *_, index=index: reached.append(index))
        step = TrainingStep(model.train(), {"input_ids": tokens, "labels": tokens})
        step.run()
        return step.kept_bytes(), sorted(set(reached))

    (upper, reached), (whole, everywhere) = kept(layers_to_transform=UPPER_HALF), kept()
    assert reached == [2, 3]
    assert everywhere == [0, 1, 2, 3]
    assert upper < 0.75 * whole


def test_it_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    config = PacaConfig(r=2, target_modules="mlp", layers_to_transform=UPPER_HALF, train_norms=True, random_seed=0)
    model = get_peft_model(llama(), config)
    tokens = torch.randint(3, 32, (2, 5), generator=torch.Generator().manual_seed(0))
    three_steps(model, lambda: model(input_ids=tokens, labels=tokens).loss, torch.optim.AdamW(trained(model)))
    model.add_adapter("other", PacaConfig(r=1, target_modules="mlp", layers_to_transform=UPPER_HALF))
    assert {len(layer.paca_delta) for name, layer in layers(model).items() if "norm" not in name} == {2}
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    torch.manual_seed(0)
    fresh = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(fresh.eval()(tokens).logits, model.eval()(tokens).logits)


T5 = transformers.T5Config(num_layers=2, num_decoder_layers=2, d_model=16, d_kv=8, d_ff=32, num_heads=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: transformers.T5ForConditionalGeneration(T5),
            r"in 2 lists of blocks \(decoder.block, encoder.block\)",
        ),
        (torchvision.models.resnet18, r"in 4 lists of blocks \(layer1, layer2, layer3, layer4\)"),
        (lambda: nn.Transformer(16, 2, 0, 0, 32), r"in no list of blocks.*target_modules"),
    ],
    ids=["T5", "ResNet", "no block"],
)
def test_a_model_without_one_list_of_blocks_is_refused(make, words):
    names = [name for name, module in make().named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    names = [name for name in names if name not in ("conv1", "fc", "lm_head")] or ["norm"]
    with pytest.raises(PacaError, match=words):
        upper_half(make(), names)


def test_the_only_block_is_the_upper_half():
    assert upper_half(nn.Sequential(nn.Linear(4, 4)), ["0"]) == {"0"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers_to_transform": "uper-half"}, "'uper-half' is unknown; pass the indices of blocks, or 'upper-half'"),
        ({"layers_to_transform": [0]}, "cannot be used when `target_modules` is a str.*'upper-half'"),
        ({"layers_to_transform": UPPER_HALF, "layers_pattern": "h"}, "`layers_pattern` does nothing with"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(PacaError, match=words):
        PacaConfig(target_modules="all-linear", **options)
