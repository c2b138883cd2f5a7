"""An adapter as the LoRA of rank `r` that it is: `A` selects the connections, `B = Δ`.

    s·X[..., I] Δᵀ = s·X Aᵀ Bᵀ   with   A = 𝟙[I], shape (r, in), one 1 in each row;   B = Δ, shape (out, r)

Nothing is approximated. Some readers (vLLM) know one rank and one scaling per adapter: smaller ranks are filled up
with zeros, other scalings are multiplied into `B`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from paca.tuner.export.rewritten import rewritten_names
from paca.tuner.export.updates import (
    common_rank,
    config_fields,
    linear_problems,
    linear_updates,
    other_tensors,
    refuse,
    rescaled,
)
from paca.tuner.layers import QuantizedLinear
from paca.tuner.layers.find import PEFT_PREFIX, adapter_layers


def selector(indices: Tensor, in_features: int, rank: int, dtype: torch.dtype) -> Tensor:
    """`A`, shape `(rank, in)`, which selects connections: 1 at `indices[k]` of row `k`, and 0 elsewhere."""
    rows = torch.zeros(rank, in_features, dtype=dtype)
    rows[torch.arange(len(indices)), indices.cpu()] = 1
    return rows


def padded(delta: Tensor, rank: int) -> Tensor:
    """`B`, shape `(out, rank)`: the update, shape `(out, r)`, filled up with columns of zeros."""
    return F.pad(delta, (0, rank - delta.shape[1]))


def lora_problems(model: Any) -> list[str]:
    """Why the active adapter of a `PeftModel`, trained or not yet, can't be written as a LoRA, one item each."""
    layers = adapter_layers(model, model.active_adapters[0])
    quantized = [name for name, layer in layers.items() if isinstance(layer, QuantizedLinear)]
    return [
        *linear_problems(model),
        *(
            f"PEFT takes {name} for an expert, and its weight is quantized"
            for name in rewritten_names(model.get_base_model(), quantized)
        ),
    ]


def write_lora(model: Any, folder: Path) -> None:
    """Write the active adapter of a `PeftModel` as a LoRA that plain PEFT loads.

    Layers that PEFT would take for experts are named by their weights. A PacaError names the layers that are not
    linear, and the biases, that the adapter trains.
    """
    from peft import LoraConfig

    refuse(lora_problems(model), "lora")
    updates = linear_updates(model, "lora")
    rank, scaling, alpha = common_rank(updates)
    tensors = other_tensors(model)
    for update in updates:
        name = f"{PEFT_PREFIX}{update.name}"
        tensors[f"{name}.lora_A.weight"] = selector(update.indices, update.in_features, rank, update.delta.dtype)
        tensors[f"{name}.lora_B.weight"] = padded(rescaled(update, scaling), rank)
    names, base = [update.name for update in updates], model.get_base_model()
    rewritten = set(rewritten_names(base, names))
    kept = [name for name in names if name not in rewritten]
    fields = config_fields(model, kept)
    if rewritten_names(base, fields["target_modules"]):  # PEFT may know better what a full name means
        fields["target_modules"] = sorted(kept)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        fan_in_fan_out=any(update.transposed for update in updates),
        target_parameters=sorted(f"{name}.weight" for name in rewritten) or None,
        **fields,
    )
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
