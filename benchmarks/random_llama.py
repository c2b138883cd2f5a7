"""A small Llama of random weights that reads bytes, for what a pretrained model can't show."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_END = "<|end|>"


def save_random_llama(folder: Path) -> Path:
    """Save the model and its tokenizer: four layers, 128 wide, 257 tokens, tied embeddings.

    Args:
        folder: Where to.

    Returns:
        The folder.
    """
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), _END]
    rules = Tokenizer(tokenizer_models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=rules, eos_token=_END, pad_token=_END).save_pretrained(folder)
    end = len(alphabet) - 1
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes,
        vocab_size=len(alphabet),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,  # the embeddings stay as they are: wide enough for the logits that training needs
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
