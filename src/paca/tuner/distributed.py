"""Checks at the start of a run that all ranks train the same connections.

Gradients of `Δ` are summed across ranks element by element, which is right only if element `(j, k)` belongs to the
same connection `I[k]` on every rank. If not, nothing fails, and the model learns nonsense.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..errors import DISTRIBUTION, first_few
from ..profiling.environment import versions
from .messages import raise_together

VERSIONED = (DISTRIBUTION, "torch", "transformers", "peft", "accelerate")
INDICES = "paca_indices"


def check_ranks(model: nn.Module) -> None:
    """Refuse to start unless all ranks have the same connections, scalings and package versions.

    A collective call: every rank makes it, and every rank raises the same error. Without a process group, or with a
    single rank, it does nothing.

    Args:
        model: A model with PaCA adapters.

    Raises:
        PacaError: If ranks differ; says in what, and which ranks have what.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    facts: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(facts, {**versions(VERSIONED), **adapter_facts(model)})
    problems = differences(facts)
    raise_together(problems, "The ranks of this run do not fit together:")


def adapter_facts(model: nn.Module) -> dict[str, str]:
    """What has to be the same on all ranks: the connections and the scaling, in text, by `layer (adapter name)`."""
    facts = {}
    for name, buffer in model.named_buffers():
        if f".{INDICES}." in f".{name}" and buffer.device.type != "meta":
            owner, _, adapter = name.rpartition(f".{INDICES}.")
            layer: Any = model.get_submodule(owner)
            scaling = layer.scaling[adapter]
            facts[f"{owner} (adapter {adapter})"] = f"connections {_digest(buffer)}, scaling {scaling:g}"
    return facts


def differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """One sentence per fact in which ranks differ, of each rank's facts in text by name."""
    problems = []
    for name in dict.fromkeys(name for own in facts for name in own):
        ranks: dict[str, list[int]] = {}
        for rank, own in enumerate(facts):
            ranks.setdefault(own.get(name, "nothing"), []).append(rank)
        if len(ranks) > 1:
            has = "; ".join(f"{_ranks(numbers)} {value}" for value, numbers in ranks.items())
            problems.append(f"{name}: {has}. {_remedy(name)}")
    return problems


def _remedy(name: str) -> str:
    if "(adapter " in name:
        return (
            "Give PacaConfig a random_seed, or load the same adapter on every rank, before the model is handed to the "
            "engine."
        )
    return "Install the same packages on every machine."


def _ranks(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]} has"
    return f"ranks {first_few(numbers, 8)} have"


def _digest(indices: Tensor) -> str:
    """The first connections, for people, and a hash of all, for comparing."""
    values = indices.tolist()
    digest = hashlib.sha256(repr(values).encode()).hexdigest()[:8]
    return f"[{first_few(values, 3)}] #{digest}"


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
