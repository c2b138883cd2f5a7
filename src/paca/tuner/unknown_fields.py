"""What to write in a `PacaConfig` for the fields that other methods' configurations have."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import PacaError

Config = TypeVar("Config", bound=type)
NO_FACTORS = "PaCA trains columns of the weight itself and has no factors {}; leave it out."
FROM_DATA = (
    "PaCA's columns start from the pretrained ones; data choose which they are: selection='activation' or 'gradient'."
)
QUANTIZED = "PaCA trains columns over quantized weights as they are (docs/quantized.md); leave it out."
MEGATRON = "Megatron's layers are not adapted; transformers' tensor parallelism is (docs/distributed.md)."
INSTEAD = {
    "lora_alpha": "PaCA's is `paca_alpha`: updates are scaled by paca_alpha / r, as LoRA's are by lora_alpha / r.",
    "alpha": "PaCA's is `paca_alpha`.",
    "rank": "PaCA's is `r`.",
    "lora_dropout": "PaCA computes nothing beside the layer that could be dropped; leave it out, and use the base "
    "model's own dropout (attention_dropout in its configuration).",
    "use_rslora": "There is no such switch: rank-stabilized scaling is paca_alpha = alpha · √r.",
    "use_dora": NO_FACTORS.format("whose magnitude could be trained apart"),
    "init_lora_weights": "PaCA's is `init_weights`: True starts from the pretrained model.",
    "loftq_config": NO_FACTORS.format("to initialize"),
    "lora_bias": "PaCA's is `bias`: 'none', 'all' or 'paca_only'.",
    "layer_replication": "PaCA's columns are those of one layer; replicate layers in the base model first.",
    **dict.fromkeys(("eva_config", "corda_config", "lora_ga_config"), FROM_DATA),
    **dict.fromkeys(("use_qalora", "qalora_group_size"), QUANTIZED),
    **dict.fromkeys(("megatron_config", "megatron_core"), MEGATRON),
    "ensure_weight_tying": "Tied weights are not adapted; leave it out.",
    "trainable_token_indices": "A token is a connection of nn.Embedding: target the embedding, and give the tokens as "
    "selection_indices.",
    "seed": "PaCA's is `random_seed`.",
}


class UnknownFieldError(PacaError, TypeError):
    """A keyword that no field has; a `TypeError` too, by which PEFT knows a file that a later version has written."""


def explain_unknown_fields(config_class: Config) -> Config:
    """Have a configuration's constructor say, of keywords that it does not know, what to write in their place."""
    construct: Callable[..., None] = config_class.__init__  # type: ignore[misc]
    known = [field.name for field in dataclasses.fields(config_class)]

    @functools.wraps(construct)
    def constructor(self: Any, *args: Any, **fields: Any) -> None:
        unknown = {name: value for name, value in fields.items() if name not in known}
        if unknown:
            raise UnknownFieldError("\n  ".join([_opening(config_class, unknown), *_lines(unknown, known)]))
        construct(self, *args, **fields)

    config_class.__init__ = constructor  # type: ignore[misc]
    return config_class


def _opening(config_class: type, unknown: Mapping[str, Any]) -> str:
    # PEFT looks for these words, those of Python's own error.
    return f"{config_class.__name__}.__init__() got an unexpected keyword argument {next(iter(unknown))!r}:"


def _lines(unknown: Mapping[str, Any], known: list[str]) -> list[str]:
    return [f"{name}={value!r}: {_instead(name, known)}" for name, value in unknown.items()]


def _instead(name: str, known: list[str]) -> str:
    """What to write in place of a field, told from its name."""
    from peft import LoraConfig

    plain = name.removeprefix("lora_")  # as in other programs' settings: lora_r, lora_target_modules
    if name in INSTEAD or plain in INSTEAD:
        return INSTEAD.get(name) or INSTEAD[plain]
    if plain in known:
        return f"PaCA's is `{plain}`."
    if name in LoraConfig.__dataclass_fields__:
        return "Only LoRA has it; leave it out."
    near = difflib.get_close_matches(plain, known, n=1)
    return f"Did you mean `{near[0]}`?" if near else f"Known are: {', '.join(known)}."
