"""Shapes of models, from their published configurations: enough to build them without a download.

Only what memory and operations depend on is here. Each shape names the configuration on the Hub that it repeats.
"""

from dataclasses import dataclass
from typing import Any

ALL_LINEAR = "all-linear"
CONVOLUTIONS = r".*\.conv_\w+"  # of timm's EfficientNets


@dataclass(frozen=True)
class Shape:
    """A model's shape.

    Args:
        name: What is typed.
        model_type: transformers' name of its kind of configuration.
        config: Fields of that configuration.
        hub: Names on the Hub of models of this shape; the first one's configuration is the source.
        targets: What is adapted by default: PEFT's `target_modules`.
    """

    name: str
    model_type: str
    config: tuple[tuple[str, Any], ...]
    hub: tuple[str, ...]
    targets: str = ALL_LINEAR


# Columns of the sizes below.
_LLAMA = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip


def _llama(name: str, sizes: tuple[int, ...], *hub: str) -> Shape:
    return Shape(name, "llama", tuple(zip(_LLAMA, sizes, strict=True)), hub)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _llama(
            "llama2-7b",
            (4096, 11008, 32, 32, 32, 32000, 4096, False),
            "meta-llama/Llama-2-7b-hf",
            "meta-llama/Llama-2-7b-chat-hf",
        ),
        _llama(
            "llama2-13b",
            (5120, 13824, 40, 40, 40, 32000, 4096, False),
            "meta-llama/Llama-2-13b-hf",
            "meta-llama/Llama-2-13b-chat-hf",
        ),
        _llama(
            "llama3-8b",
            (4096, 14336, 32, 32, 8, 128256, 8192, False),
            "meta-llama/Meta-Llama-3-8B",
            "meta-llama/Meta-Llama-3-8B-Instruct",
        ),
        _llama(
            "llama3.1-70b",
            (8192, 28672, 80, 64, 8, 128256, 131072, False),
            "meta-llama/Llama-3.1-70B",
            "meta-llama/Meta-Llama-3.1-70B",
            "meta-llama/Llama-3.1-70B-Instruct",
        ),
        _llama(
            "llama3.2-1b",
            (2048, 8192, 16, 32, 8, 128256, 131072, True),
            "meta-llama/Llama-3.2-1B",
            "meta-llama/Llama-3.2-1B-Instruct",
        ),
        _llama(
            "smollm2-135m",
            (576, 1536, 30, 9, 3, 49152, 8192, True),
            "HuggingFaceTB/SmolLM2-135M",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "smollm2-135m-instruct",
        ),
        Shape(
            "vit-b-16",
            "vit",
            (
                ("hidden_size", 768),
                ("intermediate_size", 3072),
                ("num_hidden_layers", 12),
                ("num_attention_heads", 12),
                ("image_size", 224),
                ("patch_size", 16),
                ("num_labels", 1000),
            ),
            ("google/vit-base-patch16-224-in21k", "google/vit-base-patch16-224"),
        ),
        Shape(
            "efficientnetv2-l",
            "timm_wrapper",
            (("architecture", "tf_efficientnetv2_l"), ("num_labels", 1000)),
            ("timm/tf_efficientnetv2_l.in21k", "timm/tf_efficientnetv2_l.in21k_ft_in1k"),
            CONVOLUTIONS,
        ),
    )
}


def find_shape(name: str) -> Shape | None:
    """Find a shape by its own name, or by the Hub's name of a model that has it; None if there is none."""
    if name in SHAPES:
        return SHAPES[name]
    return next((shape for shape in SHAPES.values() if name in shape.hub), None)
