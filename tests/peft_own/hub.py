"""The tiny models that PEFT's tests load from the Hub, made from random configurations under the same names.

They lie where downloads would: in a cache of the Hub, so that their names are those of repositories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.file_download import repo_folder_name

from paca import PacaConfig

VOCABULARY = 100
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 4}
OPT: dict[str, Any] = {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.1}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "rotary_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 4,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 128,
    "init_std": 0.1,
}
EXPERTS: dict[str, Any] = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}

# Name on the Hub, class, fields of its configuration.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", OPT),
    "peft-internal-testing/opt-125m": (
        "OPTForCausalLM",
        {**OPT, "num_hidden_layers": 12, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128},
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", GPT),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", GROUPED),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", GROUPED),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {**GROUPED, "sliding_window": 64}),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", GPT),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", GROUPED),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", T5),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", BART),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", SIZES),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", SIZES),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", SIZES),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", SIZES),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", SIZES),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        SIZES,
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", GROUPED),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", GROUPED),
    "peft-internal-testing/tiny-random-BloomForCausalLM": ("BloomForCausalLM", {**GPT, "n_layer": 5}),
    "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": ("GPTNeoXForCausalLM", SIZES),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", GPT),
    "peft-internal-testing/tiny-random-t5": ("T5ForConditionalGeneration", T5),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": ("T5ForConditionalGeneration", T5),
    "bert-base-uncased": ("BertModel", SIZES),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "google/flan-t5-small": ("T5ForConditionalGeneration", T5),
    "hf-internal-testing/tiny-random-BertModel": ("BertModel", SIZES),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", GROUPED),
    "trl-internal-testing/tiny-GptOssForCausalLM": ("GptOssForCausalLM", EXPERTS),
}

ADAPTER, BRANCH = "peft-internal-testing/tiny-opt-lora-revision", "test"
COMMIT = "0" * 40  # the only one of each repository


def make_models(cache: Path) -> None:
    """Make all of them, unless they are there.

    Args:
        cache: What will be `HF_HUB_CACHE`.
    """
    for name, model in MODELS.items():
        _store(cache, name, partial(_save_model, *model))
    _store(cache, ADAPTER, PacaConfig(target_modules=["q_proj", "v_proj"]).save_pretrained, ["main", BRANCH])


def _save_model(class_name: str, options: dict[str, Any], folder: Path) -> None:
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    model_class(model_class.config_class(**options)).save_pretrained(folder)


def _store(cache: Path, name: str, save: Callable[[Path], Any], branches: Iterable[str] = ("main",)) -> None:
    """Have a repository in the cache, with what `save` writes at the head of these branches."""
    repository = cache / repo_folder_name(repo_id=name, repo_type="model")
    if (repository / "refs").exists():
        return
    save(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for branch in branches:
        (repository / "refs" / branch).write_text(COMMIT)
