"""Families of models that can be planned: which of transformers' classes builds one, and what its plan leaves out."""

from dataclasses import dataclass
from typing import Any

import torch

from paca.errors import PacaError

TIMM = "timm_wrapper"


@dataclass(frozen=True)
class Family:
    """Models that are built and trained alike.

    Args:
        auto_class: transformers' class that builds them.
        images: Whether a batch is images and classes; else it is tokens, which are labels too.
        chunked: Whether TRL's chunked loss can be put on them.
        note: What a plan of one leaves out, or takes for granted; empty for nothing.
    """

    auto_class: str
    images: bool = False
    chunked: bool = True
    note: str = ""

    def build(self, config: Any, dtype: torch.dtype, device: str) -> Any:
        """Build a model that takes tokens, with random weights, or on `meta`."""
        config.use_cache = config.get_text_config().use_cache = False
        if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = 0  # newer files say it beside the configuration; any token does here
        own_code = type(config).__module__.startswith("transformers_modules")  # it was trusted when it was read
        with torch.device(device):
            return _auto_class(self).from_config(config, dtype=dtype, trust_remote_code=own_code)


CLASSIFIER = Family("AutoModelForImageClassification", images=True)
CAUSAL = Family("AutoModelForCausalLM")
MULTIMODAL = "planned for text alone, without images or sound: what they would add is not counted"
SEVERAL_INPUTS = Family("AutoModelForImageTextToText", note=MULTIMODAL)
ENCODER_DECODER = Family(
    "AutoModelForSeq2SeqLM", chunked=False, note="encoder and decoder take as many tokens each as the plan says"
)


def find_family(config: Any) -> Family:
    """Find the family of a configuration; a PacaError says that there is none.

    An encoder-decoder model is one wherever transformers can build it as such, though many have a class that takes
    their decoder for a causal language model.
    """
    if config.model_type == TIMM:
        return CLASSIFIER
    if getattr(config, "is_encoder_decoder", False):
        families: tuple[Family, ...] = (ENCODER_DECODER, SEVERAL_INPUTS)
    elif _parts(config):
        families = (SEVERAL_INPUTS, Family(CAUSAL.auto_class, note=MULTIMODAL), CLASSIFIER)
    else:
        families = (CAUSAL, SEVERAL_INPUTS, CLASSIFIER)
    for family in families:
        if _builds(family, config):
            return family
    raise PacaError(
        f"A model of type {config.model_type!r} can't be planned: what can are causal, encoder-decoder and "
        "vision-language models and image classifiers, and transformers builds none of these from it."
    )


def is_image_config(config: Any) -> bool:
    """Whether a configuration is one of an image classifier."""
    return find_family(config).images


def _builds(family: Family, config: Any) -> bool:
    own = getattr(config, "auto_map", None) or {}
    return type(config) in _auto_class(family)._model_mapping or family.auto_class in own


def _auto_class(family: Family) -> Any:
    import transformers

    return getattr(transformers, family.auto_class)


def _parts(config: Any) -> list[str]:
    """Parts of a configuration that take images or sound."""
    return [name for name in ("vision_config", "audio_config") if getattr(config, name, None) is not None]
