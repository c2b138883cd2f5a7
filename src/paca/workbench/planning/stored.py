"""How a checkpoint's weights are stored, where its configuration says that they are quantized."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paca.errors import PacaError
from paca.workbench.methods.catalogue import Method
from paca.workbench.planning.methods import QUANTIZED


@dataclass(frozen=True)
class Stored:
    """Quantized weights.

    Args:
        name: The quantization, for messages.
        four_bit: Whether these are bitsandbytes' 4-bit layers, which can be planned.
        nested: Whether the scales of these are quantized too.
        skipped: Names of modules that stay plain.
    """

    name: str
    four_bit: bool = False
    nested: bool = False
    skipped: tuple[str, ...] = ()


def stored_quantization(config: Any) -> Stored | None:
    """Read the `quantization_config` of a configuration, or of its text part; None for plain weights."""
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not found:
        return None
    fields: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    method = str(fields.get("quant_method") or "an unknown method")
    if method.endswith("bitsandbytes") or "load_in_4bit" in fields:
        four_bit = bool(fields.get("load_in_4bit") or fields.get("_load_in_4bit"))
        kind = fields.get("bnb_4bit_quant_type", "fp4") if four_bit else "int8"
        skipped = tuple(fields.get("llm_int8_skip_modules") or ())
        return Stored(f"bitsandbytes {kind}", four_bit, bool(fields.get("bnb_4bit_use_double_quant")), skipped)
    bits = fields.get("bits")
    return Stored(f"{method} in {bits} bits" if bits else method)


def refuse_unplanned(config: Any, method: Method) -> None:
    """Refuse a method over weights that are stored in a way that isn't counted, rather than take them for plain."""
    stored = stored_quantization(config)
    if stored is None or (stored.four_bit and method.quantization):
        return
    what = (
        f"and {method.name!r} over such weights isn't counted. Plan --methods {' '.join(QUANTIZED.values())}."
        if stored.four_bit
        else "which isn't counted: bitsandbytes' 4-bit format is. To plan for weights that are dequantized when they "
        "are loaded, add --dtype bfloat16."
    )
    raise PacaError(f"The configuration says that the weights are quantized ({stored.name}), {what}")
