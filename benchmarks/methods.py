"""The methods that are measured against each other: how each is put onto a copy of the model.

All but full fine-tuning adapt every linear layer except the output head; what they train is in the dtype of the
method's own default (float32 in PEFT, whatever the base) unless the name says otherwise.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import ShiraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from paca import PacaConfig, PacaError
from paca.tuner.config import UPPER_HALF
from paca.workbench.methods.catalogue import METHODS as COMPARED
from paca.workbench.methods.catalogue import AdapterSetting
from paca.workbench.models.lean import quietly_lean
from swap import SwapLinear
from timing import FLOOR, FLOOR_AGAIN


@dataclass(frozen=True)
class Method:
    """One way to train a model.

    Args:
        name: What the tables call it.
        description: What exactly is measured, in one line.
        prepare: Puts the method of the given rank onto a model that it may change; returns the model to train.
        by_default: Whether it is measured where no methods are named.
        from_ids: Its steps begin at token ids, so that backward ends at the lowest layer that is trained. Others begin
            at embeddings that require a gradient, so that all go through every block.
    """

    name: str
    description: str
    prepare: Callable[[PreTrainedModel, int], nn.Module]
    by_default: bool = True
    from_ids: bool = False


def compared(name: str) -> Method:
    """The method that `paca compare` has by this name."""
    method = COMPARED[name]
    return Method(name, method.description, lambda model, rank: method.put_on(model, AdapterSetting(rank)))


def variant(name: str, description: str, **options: Any) -> Method:
    """This package with options of its config; measured where it is named."""
    return Method(
        name,
        description,
        lambda model, rank: COMPARED["paca"].put_on(model, AdapterSetting(rank, arguments=options)),
        by_default=False,
    )


def lean(name: str, described: str, prepare: Callable[[PreTrainedModel, int], nn.Module], **options: Any) -> Method:
    """A method over modules that keep the least for backward."""

    def prepare_lean(model: PreTrainedModel, rank: int) -> nn.Module:
        prepared = prepare(model, rank)
        quietly_lean(prepared)
        return prepared

    return Method(
        f"{name}-lean",
        f"{described}, with the forwards of paca.lean and a loss without logits",
        prepare_lean,
        **options,
    )


def freeze(model: PreTrainedModel, rank: int) -> nn.Module:
    """Train nothing: what remains of a step is forward and the gradient of the input."""
    return model.requires_grad_(False)


def use_shira(model: PreTrainedModel, rank: int) -> nn.Module:
    """PEFT's SHiRA, with its random mask."""
    return get_peft_model(model, ShiraConfig(r=rank, target_modules="all-linear", random_seed=0))


def equal_values(name: str, description: str, **options: Any) -> Method:
    """This package on other layers than all, where it trains as many values as it does in all at a rank."""

    def use(model: PreTrainedModel, rank: int) -> nn.Module:
        head = model.get_output_embeddings()
        layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
        budget = rank * sum(layer.out_features for layer in layers)
        return get_peft_model(model, PacaConfig(budget=budget, random_seed=0, **options))

    return Method(name, description, use, by_default=False, from_ids="layers_to_transform" in options)


def use_upper_lora(model: PreTrainedModel, rank: int) -> nn.Module:
    """LoRA of twice the rank in the upper half of the blocks, which trains as many values as in all."""
    return COMPARED["lora"].put_on(model, AdapterSetting(2 * rank, blocks=UPPER_HALF))


def use_half_lora(model: PreTrainedModel, rank: int) -> nn.Module:
    """LoRA of half the rank, which trains about as many values as PaCA does."""
    return COMPARED["lora"].put_on(model, AdapterSetting(max(1, rank // 2)))


def use_swap(model: PreTrainedModel, rank: int) -> nn.Module:
    """As many columns as PaCA trains, swapped in and out around every product."""
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(parent, name, SwapLinear(child, rank))
    return model


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(FLOOR, "forward and input gradients, nothing trained: the least that any method can cost", freeze),
        Method(FLOOR_AGAIN, "the same once more: how far apart the two are is the noise of the run", freeze),
        lean(FLOOR, "the floor", freeze),
        compared("paca"),
        lean("paca", "this package", compared("paca").prepare, by_default=False),
        lean("lora", "PEFT's LoRA", compared("lora").prepare, by_default=False),
        variant("paca-runs-8", "the same, connections in runs of 8", run_length=8),
        variant("paca-runs-16", "the same, connections in runs of 16", run_length=16),
        variant("paca-aligned", "the same, one set for layers that read one input", aligned=True),
        equal_values("paca-mlp-out", "as many values in the MLPs' outputs alone", target_modules="mlp-out"),
        equal_values("paca-mlp", "as many values in the MLPs alone", target_modules="mlp"),
        equal_values(
            "paca-mlp-norms",
            "as many values in the MLPs, and the norms",
            target_modules="mlp",
            train_norms=True,
        ),
        equal_values(
            "paca-upper",
            "as many values in the upper half of the blocks",
            target_modules="all-linear",
            layers_to_transform=UPPER_HALF,
        ),
        equal_values(
            "paca-upper-mlp-norms",
            "as many values in the MLPs of the upper half, and its norms",
            target_modules="mlp",
            train_norms=True,
            layers_to_transform=UPPER_HALF,
        ),
        Method(
            "lora-upper",
            "LoRA of twice the rank in the upper half of the blocks",
            use_upper_lora,
            by_default=False,
            from_ids=True,
        ),
        Method("lora-half", "LoRA of half the rank: about as many values as PaCA", use_half_lora, by_default=False),
        *map(compared, ("lora", "lora-base-dtype", "lora-fa", "miss")),
        Method("shira", "PEFT's SHiRA; trains as many values as LoRA at this rank", use_shira),
        *map(compared, ("dora", "moslora")),
        Method("swap", "columns swapped into the weight and out again around each product", use_swap),
        compared("full"),
    )
}


def choose_methods(names: Iterable[str] | None, dtype: torch.dtype) -> list[Method]:
    """The methods to measure, the floor and its repetition always first.

    Args:
        names: Names in `METHODS`; None for those that are measured by default and differ at this dtype.
        dtype: The base model's.

    Returns:
        The methods, each once.

    Raises:
        PacaError: If a name is unknown.
    """
    if names is None:
        # On a float32 base both LoRA rows would be one and the same.
        usual = [name for name, method in METHODS.items() if method.by_default]
        names = [name for name in usual if not (name == "lora-base-dtype" and dtype == torch.float32)]
    names = list(dict.fromkeys((FLOOR, FLOOR_AGAIN, *names)))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise PacaError(f"no method is called {', '.join(map(repr, unknown))}; choose from {', '.join(METHODS)}.")
    return [METHODS[name] for name in names]


def trained_set(model: nn.Module) -> frozenset[tuple[str, tuple[int, ...], torch.dtype | None]]:
    """Name, shape and dtype of everything that a model trains, which connections these are, and what is lean."""
    found = {(name, tuple(p.shape), p.dtype) for name, p in model.named_parameters() if p.requires_grad}
    chosen = {(name, tuple(b.tolist()), b.dtype) for name, b in model.named_buffers() if "paca_indices" in name}
    lean = {(name, (), None) for name, module in model.named_modules() if hasattr(type(module), "lean_of")}
    return frozenset(found | chosen | lean)


def check_that_methods_differ(models: dict[str, nn.Module]) -> None:
    """Refuse to measure one method under two names.

    A benchmark that builds its steps in a loop and closes over the loop's variable times the last method every time,
    and every ratio comes out near 1; so does one whose method was never put on.

    Args:
        models: The prepared model of each method, by name.

    Raises:
        RuntimeError: If two methods share a parameter or train equal sets of them, or if one trains nothing.
    """
    owners: dict[int, str] = {}
    sets: dict[frozenset[tuple[str, tuple[int, ...], torch.dtype | None]], str] = {}
    for name, model in models.items():
        for parameter in model.parameters():
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                raise RuntimeError(f"{owner!r} and {name!r} share a parameter: each method needs a model of its own.")
        if name in (FLOOR, FLOOR_AGAIN, f"{FLOOR}-lean"):
            continue
        trained = trained_set(model)
        if not trained:
            raise RuntimeError(f"{name!r} trains nothing, so it would be measured as the floor.")
        other = sets.setdefault(trained, name)
        if other != name:
            raise RuntimeError(
                f"{other!r} and {name!r} train the same parameters, so one method would be measured twice; "
                "leave one of them out."
            )
