"""Which layers of a model a configuration means, and all reasons why these cannot be adapted as it asks."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Mapping
from typing import Any

from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn

from ...errors import PacaError
from ..config import UPPER_HALF, PacaConfig, rank_of, whole_runs
from ..layers.experts import targeted_parameters
from ..layers.kinds import layer_kind
from ..layers.quantized import QuantizedLinear
from ..messages import near_names, not_found, raise_together, unmatched_names
from .blocks import upper_half
from .budget import spend_budget
from .checks import (
    adaptable_names,
    base_of,
    connections,
    is_trained_whole,
    layer_problems,
    target_problems,
    with_parts,
)
from .experts import parameter_problems
from .keywords import WORDS, expand_targets
from .norms import norm_names


class NothingTargetedError(PacaError, NoMatchingPeftModuleError):
    """A configuration that names no layer of the model."""


def resolve_targets(model: nn.Module, config: PacaConfig, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Have a configuration name the layers that it means, and refuse it if they cannot be adapted as asked.

    Args:
        model: The base model; it is only looked at.
        config: The configuration. Words such as `"all-linear"` in it are replaced by the names of layers.
        state_dict: If given, the layers to adapt are read from its keys.

    Raises:
        PacaError: If something cannot be adapted; gives all reasons.
    """
    if not isinstance(config, PacaConfig):
        raise PacaError(
            f"{type(config).__module__}.{type(config).__name__} is another package's configuration. Take "
            "PacaConfig from this one: `from paca import PacaConfig`."
        )
    if config.target_modules is None:
        config.target_modules = _usual_targets(model, config)
    expand_targets(model, config)
    half = config.layers_to_transform == UPPER_HALF
    if half:
        config.layers_to_transform = None  # PEFT knows indices alone
    modules = dict(model.named_modules())
    if state_dict is None:
        targets = _matching(config, modules)
        _check_names(config, modules, targets)
        if config.train_norms:
            targets = _with_norms(config, modules, targets)
        if half:
            targets = _in_upper_half(model, config, modules, targets)
    else:
        saved = {key.rsplit(".paca_", 1)[0].removeprefix("_orig_mod.") for key in state_dict}
        targets = {name: module for name, module in modules.items() if name.removeprefix("_orig_mod.") in saved}
    targets = with_parts(targets)
    experts = targeted_parameters(model, config.target_parameters or ())
    if config.budget is not None and all(layer_kind(base_of(module)) for module in targets.values()):
        spend_budget(config.budget, model, config, targets, experts)
    raise_together(_reasons(model, config, targets, experts), "PaCA cannot adapt this model as asked:")
    if config.fan_in_fan_out and any(isinstance(module, nn.Linear) for module in targets.values()):
        warnings.warn(
            "fan_in_fan_out=True is ignored: torch.nn.Linear stores its weight as (out, in), and PaCA reads the "
            "layout of a weight from its layer.",
            stacklevel=2,
        )


def take_upper_half(model: nn.Module, config: Any) -> None:
    """Have another method's configuration name what `layers_to_transform="upper-half"` leaves of its layers.

    Args:
        model: The base model; it is only looked at.
        config: A configuration of PEFT's that has this for `layers_to_transform`.

    Raises:
        PacaError: If the layers are in no list of blocks, or in several.
    """
    config.layers_to_transform = None
    if config.target_modules is None:
        config.target_modules = _usual_targets(model, config)
    modules = dict(model.named_modules())
    _in_upper_half(model, config, modules, _matching(_maybe_include_all_linear_layers(config, model), modules))


def _usual_targets(model: nn.Module, config: Any) -> Any:
    """The layers that PEFT adapts in models of this type; none where fused expert weights are named instead."""
    model_type = BaseTuner.get_model_config(model)["model_type"]
    usual = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    if usual is None and not config.target_parameters:
        raise PacaError(
            f"Please specify `target_modules` in `peft_config`: the usual ones of a model of type {model_type!r} are "
            "not known. Pass a list of layer names, or 'all-linear'."
        )
    return usual if isinstance(usual, str) else set(usual or ())


def _matching(config: Any, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules that PEFT will adapt: those that match and are not inside an adapted layer."""
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, BaseTunerLayer))
    targets = {}
    for name, module in modules.items():
        found = check_target_module_exists(config, name) if name and not name.startswith(inside) else False
        if found and not isinstance(found, _ExcludedModule):
            targets[name] = module
    return targets


def _with_norms(
    config: PacaConfig, modules: Mapping[str, nn.Module], targets: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The targets and the norms, all of which the configuration names then, so that its file says what was trained."""
    names = norm_names(modules, config)
    only_norms = copy.copy(config)
    # By their last names, for PEFT takes a whole one at its word, whatever layers_to_transform says.
    only_norms.target_modules = {name.rpartition(".")[2] for name in names}  # type: ignore[assignment]
    norms = {name: module for name, module in _matching(only_norms, modules).items() if name in names}
    found = {**targets, **norms}
    config.train_norms = False
    _name_exactly(config, modules, found)
    return found


def _in_upper_half(
    model: nn.Module, config: Any, modules: Mapping[str, nn.Module], targets: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The targets of the upper half of the blocks, which the configuration names then, expert weights as well."""
    experts = targeted_parameters(model, getattr(config, "target_parameters", None) or ())
    upper = upper_half(model, [*targets, *experts])
    found = {name: module for name, module in targets.items() if name in upper}
    if experts:
        config.target_parameters = [name for name in experts if name in upper] or None
    _name_exactly(config, modules, found)
    return found


def _name_exactly(config: Any, modules: Mapping[str, nn.Module], found: Mapping[str, nn.Module]) -> None:
    """Have the configuration name these modules alone: PEFT takes a name for the end of a longer one as well."""
    config.target_modules = set(found)
    if _matching(config, modules).keys() != found.keys():
        config.target_modules = "|".join(map(re.escape, sorted(found)))
        config.layers_to_transform = config.layers_pattern = None


def _check_names(config: PacaConfig, modules: Mapping[str, nn.Module], targets: Mapping[str, nn.Module]) -> None:
    """Report names that match nothing: an error if none matches, else a warning."""
    if isinstance(config.target_modules, str):
        if not (targets or config.exclude_modules or config.target_parameters):
            raise NothingTargetedError(_nothing_matches(config.target_modules, modules))
        return
    wanted = list(config.target_modules or [])
    missing = unmatched_names(wanted, modules)
    if missing and targets:
        warnings.warn(
            f"target_modules: {not_found(missing, modules)} The others match {len(targets)} layers.", stacklevel=2
        )
    elif missing and not config.exclude_modules:
        raise NothingTargetedError(
            "No modules were targeted for adaptation. "
            f"Target modules {sorted(wanted)} not found in the base model:\n{not_found(missing, modules)}\n"
            f"Layers of this model that can be adapted: {adaptable_names(modules)}. Please check the target "
            "modules and try again, or pass target_modules='all-linear'."
        )


def _nothing_matches(pattern: str, modules: Mapping[str, nn.Module]) -> str:
    near = difflib.get_close_matches(pattern.lower(), WORDS, n=1) or near_names(pattern, modules, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return (
        f"Target modules {pattern} not found in the base model. As a regular expression it matches no layer's whole "
        f"name{hint} Layers of this model that can be adapted: {adaptable_names(modules)}. Pass a list of such names, "
        f"or one of {', '.join(map(repr, WORDS))}."
    )


def _reasons(model: nn.Module, config: PacaConfig, targets: Mapping[str, nn.Module], experts: list[str]) -> list[str]:
    """All reasons why these layers and fused expert weights cannot be adapted."""
    ranks = {name: rank_of(config, name) for name in [*targets, *experts]}
    problems = [
        *target_problems(model, targets, ranks, config.clamp_rank),
        *parameter_problems(
            model, config.target_parameters or (), {name: ranks[name] for name in experts}, config.clamp_rank
        ),
    ]
    # A file brings its connections and their number along, and what follows takes layers that can be adapted.
    if problems or config._being_loaded:
        return problems
    sizes = {name: connections(module) for name, module in targets.items() if not is_trained_whole(module)}
    ranks = {name: whole_runs(config, ranks[name], size) for name, size in sizes.items()}
    return [
        *layer_problems(config, sizes, ranks),
        *_cannot_move(config, targets, experts),
        *_bias_problems(config, targets),
    ]


def _cannot_move(config: PacaConfig, targets: Mapping[str, nn.Module], experts: list[str]) -> list[str]:
    """Layers whose weight cannot keep the columns that were trained before."""
    if config.reselect_every is None:
        return []
    kinds = {name: layer_kind(base_of(module)) for name, module in targets.items()}
    found = [name for name, kind in kinds.items() if kind and issubclass(kind.layer_class, QuantizedLinear)] + experts
    return [
        f"reselect_every: {name} cannot keep trained columns in its weight (it is quantized, or experts'); leave it "
        "out of the targets, or leave reselect_every out."
        for name in found
    ]


def _bias_problems(config: PacaConfig, targets: Mapping[str, nn.Module]) -> list[str]:
    """Layers whose bias no optimizer would ever see."""
    if config.bias == "none":
        return []
    bases = {name: base_of(module) for name, module in targets.items()}
    return [
        f"bias={config.bias!r} cannot train the bias of {name}, which {type(base).__name__} keeps as a plain tensor "
        "and not as a parameter; pass bias='none', or leave the layer out."
        for name, base in bases.items()
        if isinstance(getattr(base, "bias", None), Tensor) and not isinstance(base.bias, nn.Parameter)
    ]
