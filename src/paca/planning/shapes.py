"""Shapes of models, from their published configurations: enough to build them without a download."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model's shape.

    Args:
        name: What is typed.
        description: Whose it is.
        config: Fields of transformers' `LlamaConfig`.
    """

    name: str
    description: str
    config: tuple[tuple[str, Any], ...]


def _llama(
    name: str,
    description: str,
    hidden: int,
    middle: int,
    layers: int,
    heads: int,
    key_heads: int,
    vocabulary: int,
    positions: int,
    tied: bool = False,
) -> Shape:
    fields = {
        "hidden_size": hidden,
        "intermediate_size": middle,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }
    return Shape(name, description, tuple(fields.items()))


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _llama("llama2-7b", "Meta's Llama 2, 7B", 4096, 11008, 32, 32, 32, 32000, 4096),
        _llama("llama2-13b", "Meta's Llama 2, 13B", 5120, 13824, 40, 40, 40, 32000, 4096),
        _llama("llama3-8b", "Meta's Llama 3, 8B", 4096, 14336, 32, 32, 8, 128256, 8192),
        _llama("llama3.1-70b", "Meta's Llama 3.1, 70B", 8192, 28672, 80, 64, 8, 128256, 131072),
        _llama("smollm2-135m", "Hugging Face's SmolLM2, 135M", 576, 1536, 30, 9, 3, 49152, 8192, tied=True),
    )
}
