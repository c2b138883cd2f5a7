"""TRL compares a policy with what it was: the first step's loss and divergence are those of two equal models.

For a model that comes with an adapter and no reference model, TRL adds an adapter "ref" of the same configuration and
copies every parameter with `.default.` in its name into it. PaCA's have no such names, and need no copying.
"""

import math

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from tests.toys import layers, logits_under
from tests.workbench.tiny import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from paca import PacaConfig

ARGUMENTS = {
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}
PAIRS = [{"prompt": f"Say {i}", "chosen": f" yes {i}", "rejected": f" no {i} no"} for i in range(4)]
PROMPTS = [{"prompt": pair["prompt"]} for pair in PAIRS]
JUDGED = [
    {"prompt": pair["prompt"], "completion": pair[key], "label": key == "chosen"}
    for pair in PAIRS
    for key in ("chosen", "rejected")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attention_dropout=0.0)


def options():
    return PacaConfig(r=4, paca_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def fresh_adapter(folder):
    return get_peft_model(base(folder), options())


def trained_adapter(folder):
    model = fresh_adapter(folder)
    for layer in layers(model).values():
        torch.nn.init.normal_(layer.paca_delta["default"], std=0.1)
    return model


def loaded_adapter(folder):
    trained_adapter(folder).save_pretrained(folder / "adapter")
    return PeftModel.from_pretrained(base(folder), folder / "adapter", is_trainable=True)


def train(trainer, config, model, rows, folder, **more):
    """The log of two steps."""
    arguments = {**ARGUMENTS, "output_dir": str(folder / "out")}
    own = {key: more.pop(key) for key in list(more) if key not in ("peft_config", "reward_funcs")}
    trainer = trainer(
        model,
        args=config(**arguments | own),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        **more,
    )
    trainer.train()
    first, second, *_ = trainer.state.log_history
    return first, second, trainer.model


def outputs(model, adapter=None):
    return logits_under(model, adapter, torch.arange(12).reshape(2, 6))


def assert_compared_with_what_it_was(model, before, folder):
    """The reference is the adapter as it was before training, and the base weights are the pretrained ones."""
    assert torch.equal(outputs(model, "ref"), before)
    assert not torch.allclose(outputs(model, "default"), before, atol=1e-4), "trained"
    plain = dict(base(folder).named_parameters())
    for name, layer in layers(model).items():
        assert torch.equal(layer.base_layer.weight, plain[f"{name}.weight"])


@pytest.mark.parametrize(
    "policy", [fresh_adapter, trained_adapter, loaded_adapter], ids=lambda policy: policy.__name__
)
def test_dpo(policy, folder):
    model = policy(folder)
    before = outputs(model, "default")
    assert torch.allclose(before, outputs(model), atol=1e-3) is (policy is fresh_adapter)
    first, second, model = train(DPOTrainer, DPOConfig, model, PAIRS, folder)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert second["loss"] < math.log(2) - 1e-3
    assert_compared_with_what_it_was(model, before, folder)


@pytest.mark.parametrize(
    "more",
    [
        {"precompute_ref_log_probs": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ],
    ids=["reference beforehand", "reentrant checkpoints", "checkpoints"],
)
def test_dpo_on_a_trained_adapter(more, folder):
    model = trained_adapter(folder)
    before = outputs(model, "default")
    first, second, model = train(DPOTrainer, DPOConfig, model, PAIRS, folder, **more)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["loss"] < math.log(2) - 1e-3
    assert_compared_with_what_it_was(model, before, folder)


def test_dpo_with_a_configuration_compares_with_the_base_model(folder):
    first, second, model = train(DPOTrainer, DPOConfig, base(folder), PAIRS, folder, peft_config=options())
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["loss"] < math.log(2) - 1e-3
    assert torch.equal(outputs(model), base(folder)(torch.arange(12).reshape(2, 6)).logits)


def test_kto(folder):
    model = trained_adapter(folder)
    before = outputs(model, "default")
    first, second, model = train(KTOTrainer, KTOConfig, model, JUDGED, folder)
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-6)
    assert second["loss"] < 0.5 - 1e-3
    assert_compared_with_what_it_was(model, before, folder)


def lengths(completions, **_):
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize(
    ("trainer", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)], ids=["GRPO", "RLOO"]
)
def test_rewards_of_generated_texts(trainer, config, folder):
    model = trained_adapter(folder)
    before = outputs(model, "default")
    own = {"num_generations": 2, "max_completion_length": 6, "beta": 0.1, "reward_funcs": lengths}
    first, second, model = train(trainer, config, model, PROMPTS, folder, **own)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert abs(second["kl"]) > 1e-5
    assert_compared_with_what_it_was(model, before, folder)
