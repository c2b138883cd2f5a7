"""Which layers the words of `target_modules` stand for, and what is said of the others.

`"all-linear"` and `"all-weights"` are here; `mlp` tells the layers of `"mlp"` and `"mlp-out"`.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from torch import nn

from ...errors import PacaError, first_few
from ..config import PacaConfig
from ..layers.embedding import Embedding
from ..layers.experts import expert_parameters, router_names, short_names
from ..layers.kinds import layer_kind
from ..layers.norm import Norm, is_norm
from .checks import WHOLE_READER, base_of, memory_of, tied_owners, weight_reader
from .experts import experts_left_out
from .mlp import layers_by_shape, mlp_layers, mlp_output_experts, mlp_outputs

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
ALL_WEIGHTS = "all-weights"
MLP = "mlp"
MLP_OUT = "mlp-out"
MLP_WORDS = (MLP, MLP_OUT)
WORDS = (ALL_LINEAR, ALL_WEIGHTS, *MLP_WORDS)

# What models that do not tell their head by a method call it; the last layer within is meant.
HEADS = ("classifier", "aux_classifier", "fc", "head", "heads", "score", "lm_head")


def expand_targets(model: nn.Module, config: PacaConfig) -> None:
    """Replace such a word in the configuration by the names of the layers, and say which are left alone."""
    word = config.target_modules.lower() if isinstance(config.target_modules, str) else None
    if word == ALL_LINEAR:
        _expand_all_linear(model, config)
    elif word == ALL_WEIGHTS:
        _expand_all_weights(model, config)
    elif word in MLP_WORDS:
        expand_mlp(model, config)


def expand_mlp(model: nn.Module, config: Any) -> None:
    """Have a configuration, PaCA's or another method's, name what its word, `"mlp"` or `"mlp-out"`, stands for."""
    whole = config.target_modules.lower() == MLP
    heads, tied = head_names(model), tied_owners(model)
    layers = mlp_layers(model) if whole else mlp_outputs(model)
    found = [name for name in layers if name not in heads and not _is_tied(model, name, tied)]
    free = hasattr(config, "target_parameters") and config.target_parameters is None
    of_experts = expert_parameters if whole else mlp_output_experts
    experts = list(of_experts(model)) if free else []
    if not found and not experts:
        raise PacaError(
            f"target_modules={config.target_modules!r}: no layer of {type(model).__name__} projects out of an MLP, "
            "which is a layer that gives back the width which the layer before it has widened. Its layers are "
            f"{layers_by_shape(model)}; name those to adapt, or pass 'all-linear'."
        )
    word, config.target_modules = config.target_modules, set(found)
    if experts:
        config.target_parameters = short_names(experts)
    shown = first_few(sorted({name.rpartition(".")[2] for name in [*found, *experts]}))
    logger.info("target_modules=%r adapts %d layers (%s)", word, len(found) + len(experts), shown)


def _is_tied(model: nn.Module, name: str, tied: Mapping[tuple[str, int], list[str]]) -> bool:
    base = base_of(model.get_submodule(name))
    kind: Any = layer_kind(base)
    return memory_of(base._parameters.get(kind.layer_class.weight_name)) in tied


def _expand_all_linear(model: nn.Module, config: PacaConfig) -> None:
    """PEFT's meaning, less routers and the layers that attention modules never call."""
    config = _maybe_include_all_linear_layers(config, model)
    found = set(config.target_modules or ())
    routers = router_names(model) & found
    uncalled = {name for name in found if weight_reader(model, name)}
    config.target_modules = found - routers - uncalled  # type: ignore[assignment]
    experts_left_out(model, config, routers)
    if uncalled:
        warnings.warn(
            f"target_modules='all-linear' leaves out {len(uncalled)} layers ({first_few(sorted(uncalled), 2)}), whose "
            f"weights {weight_reader(model, min(uncalled))} reads itself without calling them. "
            "target_modules='all-weights' adapts torch.nn.MultiheadAttention as a whole.",
            stacklevel=2,
        )


def _expand_all_weights(model: nn.Module, config: PacaConfig) -> None:
    heads = head_names(model)
    saved = tuple(config.modules_to_save or ())
    routers = router_names(model)
    tied = tied_owners(model)
    found: dict[str, nn.Module] = {}
    left: dict[str, list[str]] = {}
    problems: list[str] = []
    for name, base in _adaptable(model):
        kind: Any = layer_kind(base)
        reader = weight_reader(model, name)
        problem = f"{reader} reads its weight itself." if reader else kind.layer_class.problem(base)
        if any(f"{name}.".startswith(f"{head}.") for head in heads):
            left.setdefault("the head", []).append(name)
        elif any(f".{module}." in f".{name}." for module in saved):
            left.setdefault("modules_to_save", []).append(name)
        elif name in routers:
            left.setdefault("routers", []).append(name)
        elif memory_of(base._parameters.get(kind.layer_class.weight_name)) in tied:
            left.setdefault("tied weights", []).append(name)
        elif problem:
            problems.append(f"{name}: {problem}")
        else:
            found[name] = base
    experts = list(expert_parameters(model))
    config.target_modules = set(found)  # type: ignore[assignment]
    if experts and config.target_parameters is None:
        config.target_parameters = short_names(experts)
    _say_what_is_adapted(found, experts, left)
    if problems:
        warnings.warn(
            f"target_modules='all-weights' leaves out {len(problems)} layers that cannot be adapted: "
            f"{first_few(problems, 3, ' ')}",
            stacklevel=2,
        )


def _adaptable(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of a kind that can be adapted, by name, without embeddings and parts of other layers."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    for name, module in model.named_modules():
        base = base_of(module)
        kind = layer_kind(base)
        if kind is None or name.startswith(inside) or weight_reader(model, name) == WHOLE_READER:
            continue
        if not issubclass(kind.layer_class, (Embedding, Norm)):
            yield name, base


def head_names(model: nn.Module) -> set[str]:
    """The names of a language model's or a classifier's head: what turns features into an answer."""
    # transformers tells its output embeddings, and its base model with the head around it; timm has a method. Others
    # are known by the usual names of a model's last part.
    heads = []
    for module in model.modules():
        for method in ("get_classifier", "get_output_embeddings"):
            head = getattr(module, method, lambda: None)() if module is model or method == "get_classifier" else None
            heads += list(head) if isinstance(head, (tuple, list)) else [head]
    names = {name for name, module in model.named_modules() if any(module is head for head in heads)}
    base = getattr(model, "base_model", model)
    if base is not model:
        names |= {name for name, child in model.named_children() if child is not base}
    return names or {name for child in HEADS for name in _last_layer(model, child)}


def _last_layer(model: nn.Module, child: str) -> list[str]:
    part = getattr(model, child, None)
    if not isinstance(part, nn.Module):
        return []
    layers = (name for name, module in part.named_modules() if layer_kind(module) and not is_norm(module))
    return [f"{child}.{name}".rstrip(".") for name in layers][-1:]


def _say_what_is_adapted(found: dict[str, nn.Module], experts: list[str], left: dict[str, list[str]]) -> None:
    counts = Counter(type(module).__name__ for module in found.values())
    if experts:
        counts["fused expert weights"] = len(experts)
    logger.info(
        "target_modules='all-weights' adapts %s; left alone: %s",
        ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing",
        ", ".join(f"{why} ({first_few(names, 2)})" for why, names in left.items()) or "nothing",
    )
