"""How a model is trained, as far as memory and operations depend on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from paca.workbench.planning.shapes import ALL_LINEAR


@dataclass(frozen=True)
class TrainingSetting:
    """How a model is trained.

    Args:
        method: A name in `METHODS`.
        rank: Of the adapter.
        batch: Sequences, or images, per step.
        tokens: Per sequence.
        dtype: Of the base weights; of what 4-bit layers compute in.
        autocast: Run the forward pass under bfloat16 autocast, as Trainer does with `bf16=True`.
        adapter_dtype: Of what a method trains; None is PEFT's default, float32 over a 16-bit base.
        checkpointing: Recompute each block in backward instead of keeping what it made.
        attention: `fused`, what a GPU's kernels keep; `sdpa`, what the CPU's keep; or `own`, what transformers' own
            choice for the model keeps there.
        block: Round sizes up to multiples of this many bytes; CUDA's allocator has 512.
        optimizer: A name in `OPTIMIZERS`.
        loss: A name in `LOSSES`.
        ranks: Processes over which FSDP2 divides parameters, gradients and the optimizer's states.
        pixels: Height and width of images.
        batch_norm: What batch normalisation does, as in a recipe: `frozen` or `train`.
        dequantized: Take weights that the configuration calls quantized for plain ones.
        targets: What is adapted: PEFT's `target_modules`.
        lean: Modules have the forwards that `paca.lean` gives them.
        budget: In place of a rank: how many values PaCA trains in all, or a share of the model's below 1.
        fields: Fields of PEFT's configuration, in place of those that rank and targets make.
    """

    method: str = "paca"
    rank: int = 16
    batch: int = 1
    tokens: int = 512
    dtype: torch.dtype = torch.bfloat16
    autocast: bool = False
    adapter_dtype: torch.dtype | None = None
    checkpointing: bool = False
    attention: str = "fused"
    block: int = 1
    optimizer: str = "adamw_torch_fused"
    loss: str = "full"
    ranks: int = 1
    pixels: int = 224
    batch_norm: str = "frozen"
    dequantized: bool = False
    targets: str | tuple[str, ...] = ALL_LINEAR
    lean: bool = False
    budget: float | None = None
    fields: Mapping[str, Any] | None = None
