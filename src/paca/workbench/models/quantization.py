"""The quantization that a recipe's `model.quantization` asks for: a short name, or bitsandbytes' own settings."""

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from paca.workbench.base.messages import listing, suggestion
from paca.workbench.base.schema import unknown_keys

# What a short name stands for, as arguments of transformers' BitsAndBytesConfig.
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def quantization_problems(quantization: str | Mapping[str, Any] | None) -> list[str]:
    """Say what is wrong with a recipe's `model.quantization`, one message per problem."""
    if quantization is None:
        return []
    where = "model.quantization"
    if importlib.util.find_spec("bitsandbytes") is None:
        return [f"{where} = {quantization!r} needs the package 'bitsandbytes': pip install bitsandbytes"]
    if isinstance(quantization, str):
        if quantization in QUANTIZATIONS:
            return []
        hint = suggestion(quantization, QUANTIZATIONS) or listing(QUANTIZATIONS)
        return [f"{where} = {quantization!r}: there is no such quantization{hint}"]
    from transformers import BitsAndBytesConfig

    problems = unknown_keys(where, quantization, set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"})
    if problems:
        return problems
    try:
        BitsAndBytesConfig(**quantization)
    except (TypeError, ValueError, AttributeError) as error:
        return [f"{where} = {dict(quantization)!r}: {error}"]
    if not (quantization.get("load_in_4bit") or quantization.get("load_in_8bit")):
        return [f"{where} = {dict(quantization)!r}: expected load_in_4bit: true or load_in_8bit: true among the keys"]
    return []


def quantization_config(quantization: str | Mapping[str, Any], dtype: str) -> Any:
    """Make a `BitsAndBytesConfig` from a name in `QUANTIZATIONS`, or from its arguments.

    4-bit layers compute in the recipe's `model.dtype`, `auto` being bfloat16, unless the arguments say otherwise.
    """
    from transformers import BitsAndBytesConfig

    settings = dict(QUANTIZATIONS[quantization] if isinstance(quantization, str) else quantization)
    if settings.get("load_in_4bit"):
        settings.setdefault("bnb_4bit_compute_dtype", "bfloat16" if dtype == "auto" else dtype)
    return BitsAndBytesConfig(**settings)
