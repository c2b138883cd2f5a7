"""The LoRA that an adapter is: by its formula, and loaded by plain PEFT."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import paca
from paca import PacaConfig, PacaError
from paca.tuner.export import rewritten
from paca.tuner.export.lora import lora_problems, padded, selector, write_lora
from paca.tuner.export.peft_format import padded_indices, write_peft

INPUTS = torch.arange(3, 15)[None]
# Ranks and scalings of their own for some layers, which readers with one of each must get right all the same.
UNEVEN = {"rank_pattern": {"k_proj": 2, "down_proj": 7}, "alpha_pattern": {"o_proj": 11.0}}


def trained(base, **options):
    torch.manual_seed(1)
    config = PacaConfig(**{"r": 4, "target_modules": "all-linear", "random_seed": 5, **options})
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_the_factors_are_a_row_selector_and_the_update():
    indices, delta, x = torch.tensor([1, 4]), torch.randn(3, 2, dtype=torch.float64), torch.randn(7, 6).double()
    a, b = selector(indices, 6, 4, torch.float64), padded(delta, 4)
    assert a.sum(1).tolist() == [1, 1, 0, 0]
    assert torch.equal(b[:, :2], delta)
    assert not b[:, 2:].any()
    torch.testing.assert_close(x @ a.T @ b.T, x[:, indices] @ delta.T, rtol=0, atol=0)


def test_padded_indices_are_others_and_ascending():
    every, places = padded_indices(torch.tensor([0, 3]), 6, 4)
    assert every.tolist() == [0, 1, 2, 3]
    assert places.tolist() == [0, 3]


@pytest.mark.parametrize("write", [write_lora, write_peft])
@pytest.mark.parametrize("options", [{}, {"paca_alpha": 10}, UNEVEN, {"modules_to_save": ["norm"]}])
def test_the_written_adapter_computes_the_same(tiny_model, tmp_path, write, options):
    model = trained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64), **options)
    expected = model(INPUTS).logits
    write(model, tmp_path)
    base = model.unload()
    assert not torch.allclose(base(INPUTS).logits, expected, atol=1e-2)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == {write_lora: "LORA", write_peft: "PACA"}[write]
    assert not config.get("rank_pattern")
    again = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(again(INPUTS).logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("write", [write_lora, write_peft])
def test_connections_that_have_moved_are_written_with_those_trained_before(tiny_model, tmp_path, write):
    model = trained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64), reselect_every=2)
    before = model(INPUTS).logits
    paca.reselect(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = model(INPUTS).logits
    assert not torch.allclose(before, expected, atol=1e-2)
    write(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 8
    again = PeftModel.from_pretrained(model.unload(), tmp_path, autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(again(INPUTS).logits, expected, rtol=1e-10, atol=1e-10)


def test_without_patterns_b_is_the_update_bit_for_bit(tiny_model, tmp_path):
    model = trained(AutoModelForCausalLM.from_pretrained(tiny_model), paca_alpha=10)
    write_lora(model, tmp_path)
    written = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.down_proj"
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    assert torch.equal(written[f"{name}.lora_B.weight"], layer.paca_delta["default"])
    assert written[f"{name}.lora_A.weight"].argmax(1).tolist() == layer.paca_indices["default"].tolist()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 10


def test_peft_s_format_holds_nothing_else(tiny_model, tmp_path):
    write_peft(trained(AutoModelForCausalLM.from_pretrained(tiny_model)), tmp_path)
    assert {name.rsplit(".", 1)[-1] for name in load_file(tmp_path / "adapter_model.safetensors")} == {
        "paca_delta",
        "paca_indices",
    }


def test_transposed_layers(tmp_path):
    model = trained(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64)).eval())
    expected = model(INPUTS).logits
    with pytest.raises(PacaError, match=r"stores its weight as \(in, out\).* Use --to lora or --to merged"):
        write_peft(model, tmp_path)
    write_lora(model, tmp_path)
    again = PeftModel.from_pretrained(model.unload(), tmp_path).eval()
    torch.testing.assert_close(again(INPUTS).logits, expected, rtol=1e-5, atol=1e-5)


def test_what_a_lora_can_t_hold_is_refused(tiny_model, tmp_path):
    with pytest.raises(PacaError, match=r"can't be written as 'lora'.* biases are trained .*--to merged"):
        write_lora(trained(AutoModelForCausalLM.from_pretrained(tiny_model), bias="all"), tmp_path)


def test_it_can_be_imported_first():
    """The layers import PEFT, whose import registers PaCA, which imports the layers: a circle if entered there."""
    script = "import paca.workbench.export.certificate as first, peft; print(first.__name__, peft.PeftType.PACA.value)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["paca.workbench.export.certificate", "PACA"]


EXPERTS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
# Mixtures of experts that also have dense layers or shared experts, whose names experts had in transformers 4.
MIXTURES = {
    "deepseek_v2": {**LATENT, **ROUTED},
    "deepseek_v3": {**LATENT, **ROUTED},
    "glm4_moe": ROUTED,
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    "qwen3_moe": {"num_experts": 4, "mlp_only_layers": [0]},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "mixtral": {"num_local_experts": 4},
}


def mixture(kind, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **EXPERTS, **MIXTURES[kind])
    return trained(AutoModelForCausalLM.from_config(config, dtype=torch.float32), **options)


@pytest.mark.road("expert-exports")
@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_s_dense_layers_are_found_though_peft_takes_them_for_experts(kind, tmp_path):
    model = mixture(kind)
    expected = model(INPUTS).logits
    adapted = {name.rpartition(".paca_")[0] for name in get_peft_model_state_dict(model) if "paca_delta" in name}
    write_lora(model, tmp_path)
    base = model.unload()
    assert not torch.allclose(base(INPUTS).logits, expected, atol=1e-2)
    again = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(again(INPUTS).logits, expected, rtol=1e-5, atol=1e-5)
    assert {name.rpartition(".lora_")[0] for name in get_peft_model_state_dict(again)} == adapted


@pytest.mark.road("expert-exports")
def test_an_adapter_of_such_layers_alone_is_found_too(tmp_path):
    model = mixture("deepseek_v3", target_modules=["gate_proj", "down_proj"])
    expected = model(INPUTS).logits
    write_lora(model, tmp_path)
    again = PeftModel.from_pretrained(model.unload(), tmp_path, autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(again(INPUTS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.road("expert-exports")
def test_without_mixtures_and_where_peft_keeps_full_names_they_stay_in_target_modules(
    tiny_model, tmp_path, monkeypatch
):
    write_lora(trained(AutoModelForCausalLM.from_pretrained(tiny_model)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_parameters"] is None
    assert "gate_proj" in config["target_modules"]
    monkeypatch.setattr(rewritten, "_rewrites", lambda base, name: name == "gate_proj")
    write_lora(mixture("deepseek_v3"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_parameters"] is None
    assert "model.layers.0.mlp.gate_proj" in config["target_modules"]


@pytest.mark.road("expert-exports")
def test_experts_are_refused_before_and_after_training(tmp_path):
    model = mixture("qwen3_moe", target_parameters=["mlp.experts.gate_up_proj"])
    assert lora_problems(model) == ["model.layers.1.mlp.experts.gate_up_proj is a Qwen3MoeExperts"]
    with pytest.raises(PacaError, match=r"gate_up_proj is a Qwen3MoeExperts. Use --to merged"):
        write_lora(model, tmp_path)


@pytest.mark.road("expert-exports")
def test_quantized_dense_layers_of_a_mixture_are_refused_with_the_way_out(tmp_path):
    pytest.importorskip("bitsandbytes")
    from paca.workbench.planning.packed import pack_linears

    config = AutoConfig.for_model("deepseek_v3", **EXPERTS, **MIXTURES["deepseek_v3"])
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    pack_linears(base, torch.float32)
    model = get_peft_model(base, PacaConfig(r=2, target_modules=["q_a_proj", "up_proj"]))
    with pytest.raises(PacaError, match=r"takes model.layers.0.mlp.up_proj for an expert, .* Use --to merged"):
        write_lora(model, tmp_path)
