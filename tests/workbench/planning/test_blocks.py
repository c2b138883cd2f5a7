"""A step of many equal blocks, told from steps of three and four, is that of all of them to the byte."""

from dataclasses import replace

import pytest
import torch
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config, Qwen3MoeConfig, ViTConfig

from paca.workbench.planning import blocks
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner, build, measure

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 200,
    "pad_token_id": 0,
}
LLAMA = LlamaConfig(**SIZES)
SETTING = TrainingSetting("paca", 4, 1, 32, block=512)
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.fixture
def runs(monkeypatch):
    """The numbers of blocks of the models whose steps are run."""
    taken = []
    run = Planner._run

    def watched(self, model, *rest):
        taken.append(model.config.num_hidden_layers)
        return run(self, model, *rest)

    monkeypatch.setattr(Planner, "_run", watched)
    return taken


def planned(config, setting):
    planner = Planner(config)
    step = planner.step(setting)
    return step, planner.operations(setting, step)


def assert_continued(config, setting, runs, monkeypatch):
    continued = planned(config, setting)
    assert runs == [blocks.FEW, blocks.MORE]
    monkeypatch.setattr(blocks, "LEAST", 100)
    assert planned(config, setting) == continued
    assert runs[2:] == [config.num_hidden_layers]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["paca", "lora", "dora", "moslora", "full", "qpaca", "qlora", "ia3"])
def test_every_method(method, checkpointing, runs, monkeypatch):
    if method.startswith("q"):
        pytest.importorskip("bitsandbytes")
    assert_continued(LLAMA, replace(SETTING, method=method, checkpointing=checkpointing), runs, monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw_torch"},
        {"method": "full", "optimizer": "adamw_torch"},
        {"method": "full", "optimizer": "paged_adamw_8bit"},
        {"method": "full", "loss": "chunked", "checkpointing": True},
        {"loss": "chunked", "lean": True},
        {"dtype": torch.float32, "autocast": True, "attention": "sdpa"},
        {"batch": 3, "tokens": 70, "block": 1},
        {"fields": {"r": 4, "target_modules": "all-linear", "rank_pattern": {"down_proj": 8}}},
    ],
    ids=str,
)
def test_every_part_of_a_setting(changes, runs, monkeypatch):
    if "8bit" in changes.get("optimizer", ""):
        pytest.importorskip("bitsandbytes")
    assert_continued(LLAMA, replace(SETTING, **changes), runs, monkeypatch)


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES),
        GPT2Config(n_layer=8, n_embd=32, n_head=4, vocab_size=200, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0),
        Qwen3MoeConfig(**SIZES, **EXPERTS),
        ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4, image_size=32),
    ],
    ids=lambda config: config.model_type,
)
def test_other_models(config, runs, monkeypatch):
    assert_continued(config, replace(SETTING, pixels=32), runs, monkeypatch)


@pytest.mark.parametrize("method", ["paca", "lora", "full"])
def test_the_step_is_the_real_one(method, runs):
    setting = TrainingSetting(method, 4, 2, 32, torch.float32, attention="sdpa")
    peak = Planner(LLAMA).step(setting).peak
    assert runs == [blocks.FEW, blocks.MORE]
    assert peak.total == measure(build(LLAMA, setting, "cpu"), setting, warm_up=True).peak.total


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (Gemma3TextConfig(**SIZES), None),  # five blocks of local attention to one of global
        (Qwen3MoeConfig(**SIZES, **EXPERTS, mlp_only_layers=[2]), None),
        (LLAMA, {"r": 4, "target_modules": "all-linear", "rank_pattern": {"layers.5.mlp.down_proj": 8}}),
        (LLAMA, {"r": 4, "target_modules": r".*layers\.[567].*_proj"}),
        (LlamaConfig(**{**SIZES, "num_hidden_layers": 7}), None),
    ],
    ids=["kinds of attention", "kinds of layers", "rank of one", "the last three", "few"],
)
def test_blocks_that_differ_are_all_run(config, fields, runs):
    step, operations = planned(config, replace(SETTING, fields=fields))
    assert runs == [config.num_hidden_layers]
    assert operations.adapter > 0
    assert step.peak.total > 0


def test_what_does_not_match_is_run_whole(runs, monkeypatch):
    """A model whose third block does something else than its code says."""
    expected = planned(LLAMA, SETTING)
    assert runs == [blocks.FEW, blocks.MORE]
    monkeypatch.setattr(blocks, "_matches", lambda few, more: None)
    assert planned(LLAMA, SETTING) == expected
    assert runs[2:] == [blocks.FEW, blocks.MORE, LLAMA.num_hidden_layers]


def test_modules_are_counted_from_the_nearer_end():
    found = blocks.Blocks("model.layers", 30)
    assert found.renumber("model.layers.1.mlp") == "model.layers.1.mlp"
    assert found.renumber("model.layers.3.mlp.down_proj") == "model.layers.29.mlp.down_proj"
    assert found.renumber("model.layers.2") == "model.layers.28"
    assert found.renumber("lm_head") == "lm_head"
