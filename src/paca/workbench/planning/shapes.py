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
        description: Whose it is.
        model_type: transformers' name of its kind of configuration.
        config: Fields of that configuration.
        hub: Names on the Hub of models of this shape; the first one's configuration is the source.
        targets: What is adapted by default: PEFT's `target_modules`.
    """

    name: str
    description: str
    model_type: str
    config: tuple[tuple[str, Any], ...]
    hub: tuple[str, ...]
    targets: str = ALL_LINEAR


def _llama(
    name: str,
    description: str,
    hub: tuple[str, ...],
    *,
    hidden: int,
    middle: int,
    layers: int,
    heads: tuple[int, int],
    vocabulary: int,
    positions: int,
    tied: bool = False,
) -> Shape:
    fields = {
        "hidden_size": hidden,
        "intermediate_size": middle,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }
    return Shape(name, description, "llama", tuple(fields.items()), hub)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        _llama(
            "llama2-7b",
            "Meta's Llama 2, 7B",
            ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
            hidden=4096,
            middle=11008,
            layers=32,
            heads=(32, 32),
            vocabulary=32000,
            positions=4096,
        ),
        _llama(
            "llama2-13b",
            "Meta's Llama 2, 13B",
            ("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf"),
            hidden=5120,
            middle=13824,
            layers=40,
            heads=(40, 40),
            vocabulary=32000,
            positions=4096,
        ),
        _llama(
            "llama3-8b",
            "Meta's Llama 3, 8B",
            ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
            hidden=4096,
            middle=14336,
            layers=32,
            heads=(32, 8),
            vocabulary=128256,
            positions=8192,
        ),
        _llama(
            "llama3.1-70b",
            "Meta's Llama 3.1, 70B",
            ("meta-llama/Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"),
            hidden=8192,
            middle=28672,
            layers=80,
            heads=(64, 8),
            vocabulary=128256,
            positions=131072,
        ),
        _llama(
            "smollm2-135m",
            "Hugging Face's SmolLM2, 135M",
            ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
            hidden=576,
            middle=1536,
            layers=30,
            heads=(9, 3),
            vocabulary=49152,
            positions=8192,
            tied=True,
        ),
        Shape(
            "vit-b-16",
            "Google's vision transformer, base size, patches of 16 × 16",
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
            "Google's EfficientNetV2-L, as timm builds it",
            "timm_wrapper",
            (("architecture", "tf_efficientnetv2_l"), ("num_labels", 1000)),
            ("timm/tf_efficientnetv2_l.in21k", "timm/tf_efficientnetv2_l.in21k_ft_in1k"),
            CONVOLUTIONS,
        ),
    )
}


def find_shape(name: str) -> Shape | None:
    """Find a shape by its own name, or by the Hub's name of a model that has it.

    Args:
        name: What was typed.

    Returns:
        The shape; None if there is none.
    """
    if name in SHAPES:
        return SHAPES[name]
    return next((shape for shape in SHAPES.values() if name in shape.hub), None)
