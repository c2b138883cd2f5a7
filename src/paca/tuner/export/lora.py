"""An adapter as the LoRA of rank `r` that it is: `A` selects the connections, `B = Δ`.

    s·X[..., I] Δᵀ = s·X Aᵀ Bᵀ   with   A = 𝟙[I], shape (r, in), one 1 in each row;   B = Δ, shape (out, r)

Nothing is approximated. Some readers (vLLM) know one rank and one scaling per adapter: smaller ranks are filled up
with zeros, other scalings are multiplied into `B`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from paca.tuner.export.updates import (
    PEFT_PREFIX,
    common_scaling,
    largest_rank,
    linear_updates,
    other_tensors,
    rescaled,
    shared_fields,
    target_names,
    whole_number,
)


def selector(indices: Tensor, in_features: int, rank: int, dtype: torch.dtype) -> Tensor:
    """`A`, which picks connections: row `k` is 1 at `indices[k]`, and 0 elsewhere.

    Args:
        indices: Shape `(r,)`.
        in_features: Length of a row.
        rank: Number of rows, at least `r`; those beyond `r` are zero.
        dtype: Of the result.

    Returns:
        Shape `(rank, in)`, on the CPU.
    """
    rows = torch.zeros(rank, in_features, dtype=dtype)
    rows[torch.arange(len(indices)), indices.cpu()] = 1
    return rows


def padded(delta: Tensor, rank: int) -> Tensor:
    """`B`: the update, with columns of zeros up to a rank.

    Args:
        delta: Shape `(out, r)`.
        rank: At least `r`.

    Returns:
        Shape `(out, rank)`, contiguous, on the CPU.
    """
    wide = torch.zeros(len(delta), rank, dtype=delta.dtype)
    wide[:, : delta.shape[1]] = delta
    return wide


def write_lora(model: Any, folder: Path) -> None:
    """Write the active adapter as a LoRA that plain PEFT loads.

    Args:
        model: A `PeftModel` whose active adapter is a PaCA.
        folder: Where the two files go.

    Raises:
        PacaError: If the adapter trains other layers than linear ones, or biases.
    """
    from peft import LoraConfig

    updates = linear_updates(model, "lora")
    rank, scaling = largest_rank(updates), common_scaling(updates)
    tensors = {key: value.detach().cpu().contiguous() for key, value in other_tensors(model).items()}
    for update in updates:
        name = f"{PEFT_PREFIX}{update.name}"
        tensors[f"{name}.lora_A.weight"] = selector(update.indices, update.in_features, rank, update.delta.dtype)
        tensors[f"{name}.lora_B.weight"] = padded(rescaled(update, scaling), rank)
    modules = dict(model.get_base_model().named_modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=whole_number(scaling * rank),  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=target_names([update.name for update in updates], modules),
        fan_in_fan_out=any(update.transposed for update in updates),
        inference_mode=True,
        **shared_fields(model),
    )
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
