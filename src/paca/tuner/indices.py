"""State dicts of parameters alone, for engines that expect nothing else in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

INDICES = "paca_indices"


@contextmanager
def without_indices(model: nn.Module) -> Iterator[None]:
    """Leave the connections out of a model's state dicts inside a `with` block.

    accelerate's `cpu_ram_efficient_loading` sends a model's state dict to all ranks and takes every entry for a
    parameter that FSDP2 has sharded. The connections are buffers, and whole on every rank:

        with without_indices(model):
            model, optimizer = accelerator.prepare(model, optimizer)

    Args:
        model: A model with PaCA adapters; any other is left alone.
    """
    holders = [module for name, module in model.named_modules() if name.rpartition(".")[2] == INDICES]
    saved = [(holder, set(holder._non_persistent_buffers_set)) for holder in holders]
    for holder in holders:
        holder._non_persistent_buffers_set.update(holder._buffers)
    try:
        yield
    finally:
        for holder, names in saved:
            holder._non_persistent_buffers_set = names
