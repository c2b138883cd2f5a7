"""A model, a tokenizer and texts that are small enough to train in a second. Random weights, no network."""

import json
from pathlib import Path

import torch
from peft import get_peft_model
from tests.toys import tiny_llama_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from paca import PacaConfig
from paca.workbench.base.yaml import dump
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune

# What SmolLM2 ships: no `{% generation %}` markers.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    f"The {a} {b} over the {c}." for a in ("cat", "dog", "fox") for b in ("jumps", "walks") for c in ("mat", "log")
]


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, so that any text goes in and comes out again."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=chat_template
    )


def save_model(folder: Path) -> Path:
    """A two-layer Llama with dropout, so that a run depends on the random numbers drawn in each step."""
    set_seed(0)
    tokenizer = make_tokenizer()
    config = tiny_llama_config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=128,
        attention_dropout=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapted(folder: Path) -> Path:
    """That model, for 2,048 positions, in `model`; and in `adapter` an adapter that changes what it says."""
    save_model(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", max_position_embeddings=2048)
    model.save_pretrained(folder / "model")
    adapted = get_peft_model(model, PacaConfig(r=8, target_modules="all-linear", random_seed=1, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "paca_delta" in name:
            parameter.data.normal_(0, 0.5)
    adapted.save_pretrained(folder / "adapter")
    return folder


def write_text(path: Path, repeats: int = 40) -> Path:
    """A plain text file of some sixty blocks of 16 tokens."""
    path.write_text(" ".join(SENTENCES * repeats)[:6000], encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list) -> Path:
    """One JSON value per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_content(model: Path, data: Path, output: Path) -> dict:
    """A recipe that runs in about a second."""
    return {
        "model": {"name": str(model), "dtype": "float32"},
        "method": {"name": "paca", "r": 4, "target_modules": "all-linear"},
        "data": {"train": str(data), "holdout_every": 5, "eval_limit": 8},
        "training": {
            "max_length": 16,
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "output_dir": str(output),
        "seed": 3,
    }


def write_recipe(path: Path, content: dict) -> Path:
    """A recipe file."""
    path.write_text(dump(content), encoding="utf-8")
    return path


def run(content: dict, tmp_path: Path, *overrides: str, **flags) -> dict:
    """Train a recipe, with what `finetune` takes besides it; the metrics of the run."""
    return finetune(read_recipe(write_recipe(tmp_path / "recipe.yaml", content), overrides), **flags)


def same(first, second):
    """Whether two files hold the same tensors under the same names."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
