"""`budget` in place of a rank: how it is spent, what is saved, and what cannot be spent."""

import json
import re

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tests.toys import layers, trained
from tests.tuner.layers.test_experts import DECODER, plain_model
from torch import nn

from paca import PacaConfig, PacaError


def llama():
    shape = {key: value for key, value in DECODER.items() if "expert" not in key and "moe" not in key}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))


def net():
    """A convolution of 3 channels, a depthwise one, and a linear layer: columns of 18, 9 and 5 values."""
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(8, 5))


def adapted(model, **options):
    return get_peft_model(model, PacaConfig(**{"target_modules": "all-linear", "random_seed": 0, **options}))


def count(model):
    return sum(parameter.numel() for parameter in trained(model))


MODELS = {
    "a Llama": (llama, {}),
    "its output projections": (llama, {"target_modules": "mlp-out"}),
    "fused experts": (plain_model, {"target_modules": "all-weights"}),
    "in runs": (llama, {"run_length": 4}),
}


@pytest.mark.parametrize(("make", "options"), MODELS.values(), ids=MODELS)
def test_the_largest_rank_that_fits_is_taken(make, options):
    step = options.get("run_length", 1)
    least = count(adapted(make(), r=step, **options))
    for budget in (least, least * 2 - 1, least * 2, least * 3 + 1):
        model = adapted(make(), budget=budget, **options)
        config = model.peft_config["default"]
        assert config.r == config.paca_alpha == budget // least * step
        assert config.budget is None
        assert count(model) == budget // least * least


def test_a_share_is_of_the_models_values():
    whole = sum(parameter.numel() for parameter in llama().parameters())
    assert count(adapted(llama(), budget=0.05)) == count(adapted(llama(), budget=int(0.05 * whole)))
    assert 0.04 < count(adapted(llama(), budget=0.05)) / whole <= 0.05


def test_layers_with_fewer_connections_train_all_they_have():
    targets = ["0", "1", "2"]
    for budget, ranks in ((32, [1, 1, 1]), (96, [3, 3, 3]), (110, [3, 4, 4]), (130, [3, 4, 8])):
        model = adapted(net(), budget=budget, target_modules=targets)
        assert [layer.r["default"] for layer in layers(model).values()] == ranks
        assert model.peft_config["default"].clamp_rank == (ranks != [ranks[0]] * 3)


def test_an_alpha_that_is_given_stays():
    model = adapted(llama(), budget=5_000, paca_alpha=3)
    rank = model.peft_config["default"].r
    assert {layer.scaling["default"] for layer in layers(model).values()} == {3 / rank}
    assert {layer.scaling["default"] for layer in layers(adapted(llama(), budget=5_000)).values()} == {1}


def test_the_file_has_the_rank(tmp_path):
    model = adapted(llama(), budget=5_000, init_weights=False)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["budget"] is None
    assert saved["r"] == saved["paca_alpha"] == model.peft_config["default"].r > 1
    tokens = torch.arange(6)[None] + 3
    torch.testing.assert_close(PeftModel.from_pretrained(llama(), tmp_path)(tokens).logits, model(tokens).logits)


def test_a_budget_that_cannot_be_spent_leaves_the_model_alone():
    model = llama()
    least, most = count(adapted(llama(), r=1)), count(adapted(llama(), r=1000, clamp_rank=True))
    found = sum(1 for module in model.modules() if isinstance(module, nn.Linear)) - 1
    small = f"budget={least - 1} is too small: one connection in each of the {found} layers is {least:,} values. Pass "
    with pytest.raises(PacaError, match=re.escape(f"{small}budget={least} or more")):
        adapted(model, budget=least - 1)
    large = f"budget={most + 1} is too large: all connections of the {found} layers are {most:,} values. Pass "
    with pytest.raises(PacaError, match=re.escape(f"{large}budget={most} or less")):
        adapted(model, budget=most + 1)
    with pytest.raises(PacaError, match=r"budget=1e-05 \(\d+ of the model's [\d,]+ values\) is too small"):
        adapted(model, budget=1e-5)
    with pytest.raises(PacaError, match="one run of 4 connections in each"):
        adapted(model, budget=least, run_length=4)
    assert not layers(model)


@pytest.mark.parametrize("budget", [0, -5, 1.0, 2.5, 0.0, float("nan"), True, "2%"])
def test_what_is_no_budget(budget):
    with pytest.raises(PacaError, match=re.escape(f"budget={budget!r} is neither a number of trained values")):
        PacaConfig(budget=budget)


def test_a_budget_beside_ranks():
    with pytest.raises(PacaError, match="r=4 and budget=500 both say how much is trained; leave one of them out"):
        PacaConfig(r=4, budget=500)
    with pytest.raises(PacaError, match="budget=500 gives all layers one rank; leave it out"):
        PacaConfig(budget=500, rank_pattern={"q_proj": 2})
