"""A small Llama that is trained here, from random weights, on the source code of Python's standard library.

It is the second language model of `quality.py`: small enough for hundreds of runs on a CPU, and pretrained well enough
that there is something to adapt. Model and tokenizer are kept in a folder, and made once.
"""

import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmark import progress
from stepping import linear_decay, make_optimizer

_END = "<|end|>"
_VOCABULARY = 768
_HELD_OUT_EVERY = 20
_TESTS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "encodings"}
LENGTH, SEQUENCES, STEPS = 128, 8, 1500
_MODULES = 400  # more than is seen


def source_code() -> tuple[list[str], list[str]]:
    """The standard library's modules: those to pretrain on, and every twentieth, which is held out."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(library.rglob("*.py")) if not _TESTS & set(file.relative_to(library).parts)]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.name != "topics.py"]
    random.Random(0).shuffle(texts)
    texts = texts[:_MODULES]
    return (
        [text for index, text in enumerate(texts) if index % _HELD_OUT_EVERY],
        texts[::_HELD_OUT_EVERY][:20],
    )


def load_pretrained_llama(folder: Path) -> tuple[Any, Any]:
    """Load the model and its tokenizer.

    Args:
        folder: Where they are, or are put once they are made.

    Returns:
        The model and the tokenizer.
    """
    if not (folder / "model.safetensors").exists():
        _pretrain(folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def _pretrain(folder: Path) -> None:
    texts, _ = source_code()
    tokenizer = _tokenizer(texts)
    ids = torch.tensor(
        [token for encoded in tokenizer(texts)["input_ids"] for token in (*encoded, tokenizer.eos_token_id)]
    )
    model = _random_llama(tokenizer.eos_token_id)
    step, schedule = make_optimizer(model, "muon", 2e-3, others=2e-3), linear_decay(STEPS)
    for number, batch in enumerate(_batches(ids)):
        step.at(schedule(number))
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        step.take()
        if number % 20 == 0:
            progress(f"pretraining a small Llama: step {number} of {STEPS}, loss {loss.item():.3f}")
    progress("")
    print(f"pretrained on {len(ids):,} tokens of source code, last loss {loss.item():.3f}", file=sys.stderr)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    rules = Tokenizer(tokenizer_models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, special_tokens=[_END], initial_alphabet=alphabet)
    rules.train_from_iterator(texts[:100], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=rules, eos_token=_END, pad_token=_END)


def _random_llama(end: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            **sizes,
            vocab_size=_VOCABULARY,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def _batches(ids: torch.Tensor) -> Iterator[torch.Tensor]:
    drawing = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        starts = torch.randint(len(ids) - LENGTH, (SEQUENCES,), generator=drawing)
        yield torch.stack([ids[start : start + LENGTH] for start in starts])
