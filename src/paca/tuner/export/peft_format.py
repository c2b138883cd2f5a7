"""An adapter in the format of PEFT 0.22's own PaCA, and in nothing but that.

What `save_pretrained` writes has this format already, with additional tensors (fingerprints, columns of a quantized
model) and fields that PEFT does not know (ranks per layer, biases). Here all of it is put in PEFT's terms.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from paca.errors import PacaError, first_few
from paca.tuner.export.updates import LinearUpdate, common_rank, config_fields, linear_updates, other_tensors, rescaled
from paca.tuner.layers.find import PEFT_PREFIX


def padded_indices(indices: Tensor, in_features: int, rank: int) -> tuple[Tensor, Tensor]:
    """Add the first connections that are not selected, up to a rank.

    Args:
        indices: Shape `(r,)`, ascending.
        in_features: How many connections there are.
        rank: At least `r`, at most `in_features`.

    Returns:
        All connections, ascending, shape `(rank,)`; and where each of `indices` is among them, shape `(r,)`.
    """
    free = torch.ones(in_features, dtype=torch.bool)
    free[indices] = False
    every = torch.cat([indices, free.nonzero().flatten()[: rank - len(indices)]]).sort().values
    return every, torch.searchsorted(every, indices)


def write_peft(model: Any, folder: Path) -> None:
    """Write the active adapter of a `PeftModel` as PEFT 0.22's PaCA; a PacaError says what that cannot express."""
    updates = linear_updates(model, "peft")
    rank, scaling, alpha = common_rank(updates)
    problems = [f"{u.name} stores its weight as (in, out)" for u in updates if u.transposed]
    problems += [f"{u.name} has only {u.in_features} inputs" for u in updates if u.in_features < rank]
    if problems:
        raise PacaError(
            f"This adapter can't be written as 'peft': PEFT's PaCA has one rank, here {rank}, for nn.Linear only, but "
            f"{first_few(problems, separator='; ')}. Use --to lora or --to merged."
        )
    tensors = other_tensors(model)
    for update in updates:
        tensors.update(_tensors(update, rank, scaling))
    config = {
        "peft_type": "PACA",
        **config_fields(model, [update.name for update in updates]),
        "r": rank,
        "paca_alpha": alpha,
        "random_seed": model.peft_config[model.active_adapters[0]].random_seed,
        "init_weights": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _tensors(update: LinearUpdate, rank: int, scaling: float) -> dict[str, Tensor]:
    indices, places = padded_indices(update.indices.cpu(), update.in_features, rank)
    delta = torch.zeros(len(update.delta), rank, dtype=update.delta.dtype)
    delta[:, places] = rescaled(update, scaling).cpu()
    name = f"{PEFT_PREFIX}{update.name}"
    return {f"{name}.paca_delta": delta, f"{name}.paca_indices": indices}
