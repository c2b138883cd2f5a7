"""Reasons why a configuration's layers cannot be adapted, all found before the model is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..config import PacaConfig
from ..layers.base import PacaLayer
from ..layers.kinds import LAYER_KINDS, layer_kind
from ..layers.norm import is_norm
from ..layers.quantized import QuantizedLinear
from ..selection.given import given_for, indices_problem, read_given
from ..selection.groups import group_layers, same_input_groups
from ..selection.registry import INDICES


def base_of(module: nn.Module) -> Any:
    """The layer itself, or the one that it adapts."""
    return module.base_layer if isinstance(module, PacaLayer) else module


def adaptable_names(modules: Mapping[str, nn.Module]) -> str:
    """The last names of the layers that can be adapted, separated by commas, for a message."""
    found = {
        name.removesuffix(".base_layer").rsplit(".", 1)[-1]
        for name, module in modules.items()
        if layer_kind(module) and not is_norm(module)
    }
    return ", ".join(sorted(name for name in found if not name.isdigit())) or "none"


def memory_of(parameter: Any) -> tuple[str, int]:
    """What tied parameters have in common: one address, or else, where addresses say nothing, one object."""
    plain = type(parameter) is nn.Parameter and parameter.device.type != "meta" and parameter.numel()
    return ("address", parameter.data_ptr()) if plain else ("object", id(parameter))


def tied_owners(model: nn.Module) -> dict[tuple[str, int], list[str]]:
    """The names, such as `lm_head.weight`, of parameters that several modules own, by their place in memory."""
    # `named_modules` names a module that stands at two places once: that is one layer, used twice, and not tied.
    owners: dict[tuple[str, int], list[str]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(memory_of(parameter), []).append(f"{module_name}.{name}" if module_name else name)
    return {key: names for key, names in owners.items() if len(names) > 1}


# Modules that multiply with the weights of layers inside them without calling these, by their full names. The first is
# adapted as a whole.
WHOLE_READER = "torch.nn.MultiheadAttention"
READERS = {
    "torch.nn.modules.activation.MultiheadAttention": WHOLE_READER,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "torchvision's ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": "torchvision's ShiftedWindowAttentionV2",
}


def weight_reader(model: nn.Module, name: str) -> str | None:
    """The kind of module around the layer `name`, if it reads the layer's weight itself and never calls the layer."""
    classes = type(model.get_submodule(name.rpartition(".")[0])).__mro__
    known = (READERS.get(f"{cls.__module__}.{cls.__qualname__}") for cls in classes)
    return next((reader for reader in known if reader), None)


def with_parts(targets: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The layers to adapt, with those adapted along with them: the output projections of attention modules."""
    found: dict[str, nn.Module] = {}
    for name, module in targets.items():
        found[name] = module
        if isinstance(base_of(module), nn.MultiheadAttention):
            found[f"{name}.out_proj"] = base_of(module).out_proj
    return found


def target_problems(
    model: nn.Module, targets: Mapping[str, nn.Module], ranks: Mapping[str, int], clamp_rank: bool = False
) -> list[str]:
    """Reasons why these layers, adapted already or not, cannot be adapted at these ranks.

    With `clamp_rank`, a rank that is too large will be capped, so it is no reason.
    """
    tied = tied_owners(model)
    problems = []
    for name, module in targets.items():
        base = base_of(module)
        problem = _layer_problem(name, base)
        if problem:
            problems.append(problem)
            continue
        kind: Any = layer_kind(base)
        weight = base._parameters.get(kind.layer_class.weight_name)
        # A quantized weight's own shape says nothing: its numbers lie packed in bytes.
        quantized = issubclass(kind.layer_class, QuantizedLinear)
        shape = (base.out_features, base.in_features) if quantized else weight.shape
        if ranks[name] > connections(module) and not (clamp_rank or kind.layer_class.trained_whole):
            problems.append(rank_problem(name, ranks[name], connections(module), shape))
        parent = name.rpartition(".")[0]
        reader = weight_reader(model, name)
        if reader and parent not in targets:
            whole = reader == WHOLE_READER
            instead = f"Name the whole module, {parent!r}, to adapt all its weights, or leave" if whole else "Leave"
            problems.append(
                f"{name} is part of {reader}, which reads its weight without calling it: its columns would never be "
                f"trained. {instead} this one out: exclude_modules=[{name!r}]."
            )
        own = f"{name}.{kind.layer_class.weight_name}"
        if memory_of(weight) in tied and not isinstance(module, PacaLayer):
            others = [owner for owner in tied[memory_of(weight)] if owner != own]
            problems.append(
                f"{own} is tied to {' and '.join(others)}: writing columns into it would change both. Leave "
                f"it out (exclude_modules=[{name!r}]), or untie it first: load the model with "
                f"tie_word_embeddings=False, or `module.weight = torch.nn.Parameter(module.weight.clone())`."
            )
    return problems


def _layer_problem(name: str, base: nn.Module) -> str | None:
    """Why this layer cannot be adapted."""
    kind = layer_kind(base)
    if kind is not None and not isinstance(base, BaseTunerLayer):
        problem = kind.layer_class.problem(base)
        return f"Target module {name} ({type(base).__name__}) cannot be adapted: {problem}" if problem else None
    can = ", ".join(kind.name for kind in LAYER_KINDS)
    return (
        f"Target module {name} ({type(base).__name__}) is not supported. PaCA adapts {can}; name such layers in "
        "target_modules, or leave this one out with exclude_modules."
    )


def rank_problem(name: str, rank: int, connections: int, shape: Sequence[int]) -> str:
    """What to do about a rank that is larger than the number of connections."""
    return (
        f"r={rank} does not fit {name}, which has {connections} connections (weight {tuple(shape)}): pass "
        f"r={connections} or less, or rank_pattern={{{name!r}: ...}}, or clamp_rank=True to cap it."
    )


def connections(module: nn.Module) -> int:
    """How many connections a layer has, adapted already or not."""
    kind: Any = layer_kind(base_of(module))
    return kind.layer_class.connections(base_of(module))


def is_trained_whole(module: nn.Module) -> bool:
    """Whether a layer of this kind trains all of its connections, whatever the rank."""
    kind: Any = layer_kind(base_of(module))
    return bool(kind.layer_class.trained_whole)


def layer_problems(config: PacaConfig, sizes: Mapping[str, int], ranks: Mapping[str, int]) -> list[str]:
    """Reasons why connections cannot be chosen in these layers as the configuration asks, one sentence each.

    `sizes` says how many connections each layer has; `ranks`, how many are to be chosen.
    """
    problems = []
    if config.selection == INDICES and config.selection_indices is not None:
        given = read_given(config.selection_indices)
        found = (indices_problem(given_for(given, name), name, size, ranks[name]) for name, size in sizes.items())
        problems += [problem for problem in found if problem]
    for name, size in sizes.items():
        whole = size // config.run_length * config.run_length
        if whole < ranks[name] <= size:
            problems.append(
                f"r={ranks[name]} does not fit {name} in runs of {config.run_length}: its {size} connections hold "
                f"{size // config.run_length} such runs. Pass r={whole} or less, or another run_length."
            )
        if config.reselect_every is not None and ranks[name] == size:
            problems.append(
                f"reselect_every={config.reselect_every} has nowhere to move in {name}: r={ranks[name]} trains all of "
                f"its {size} connections. Pass a smaller r, or leave reselect_every out."
            )
    for group in group_layers(sizes, same_input_groups(config.aligned)):
        if len({(sizes[name], ranks[name]) for name in group}) > 1:
            facts = ", ".join(f"{name} (r={ranks[name]} of {sizes[name]})" for name in group)
            problems.append(
                f"aligned: {facts} cannot share an index set; give them one rank, or leave their group out of aligned."
            )
    return problems
