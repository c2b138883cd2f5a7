"""Which modules of a model a configuration means, and what stands against adapting them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _ExcludedModule
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from ...errors import PacaError
from ..config import PacaConfig, rank_of, whole_runs
from ..layers.base import PacaLayer
from ..layers.experts import targeted_parameters
from ..layers.kinds import layer_kind
from ..layers.quantized import QuantizedLinear
from ..messages import not_found, raise_together, unmatched_names
from .checks import adaptable_names, connections, layer_problems, target_problems, with_parts
from .experts import parameter_problems
from .keywords import expand_targets


class TargetedModel(BaseTuner):
    """A model some of whose layers are targets, all checked before one is touched."""

    prefix: str = "paca_"
    tuner_layer_cls = PacaLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _check_targets(
        self, model: nn.Module, config: PacaConfig, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not isinstance(config, PacaConfig):
            raise PacaError(
                f"{type(config).__module__}.{type(config).__name__} is another package's configuration. Take "
                "PacaConfig from this one: `from paca import PacaConfig`."
            )
        config = self._prepare_adapter_config(config, self.get_model_config(model))
        expand_targets(model, config)
        modules = dict(model.named_modules())
        targets = self._targets(config, modules, state_dict)
        if state_dict is None:
            self._check_matches(config, modules, targets)
        targets = with_parts(targets)
        ranks = {name: rank_of(config, name) for name in targets}
        names = targeted_parameters(model, config.target_parameters or ())
        problems = [
            *target_problems(model, targets, ranks, config.clamp_rank),
            *parameter_problems(
                model,
                config.target_parameters or (),
                {name: rank_of(config, name) for name in names},
                config.clamp_rank,
            ),
        ]
        if not problems and not config._being_loaded:
            sizes = {name: connections(module) for name, module in targets.items()}
            ranks = {name: whole_runs(config, ranks[name], size) for name, size in sizes.items()}
            problems = [
                *layer_problems(config, sizes, ranks),
                *_cannot_move(config, targets, names),
                *_bias_problems(config, targets),
            ]
        raise_together(problems, "PaCA cannot adapt this model as asked:")
        if config.fan_in_fan_out and any(isinstance(module, nn.Linear) for module in targets.values()):
            warnings.warn(
                "fan_in_fan_out=True is ignored: torch.nn.Linear stores its weight as (out, in), and PaCA reads the "
                "layout of a weight from its layer.",
                stacklevel=2,
            )

    def _targets(
        self, config: PacaConfig, modules: dict[str, nn.Module], state_dict: dict[str, Tensor] | None
    ) -> dict[str, nn.Module]:
        """The modules that PEFT will adapt: those that a state dict has entries for, else those that match."""
        if state_dict is not None:
            saved = {key.rsplit(f".{self.prefix}", 1)[0].removeprefix("_orig_mod.") for key in state_dict}
            return {name: module for name, module in modules.items() if name.removeprefix("_orig_mod.") in saved}
        inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, BaseTunerLayer))
        targets = {}
        for name, module in modules.items():
            found = self._check_target_module_exists(config, name) if name and not name.startswith(inside) else False
            if found and not isinstance(found, _ExcludedModule):
                targets[name] = module
        return targets

    def _check_matches(self, config: PacaConfig, modules: dict[str, nn.Module], targets: dict[str, nn.Module]) -> None:
        """Report names that match nothing: an error if none matches, else a warning."""
        wanted = [] if isinstance(config.target_modules, str) else list(config.target_modules or [])
        missing = unmatched_names(wanted, modules)
        if missing and targets:
            warnings.warn(
                f"target_modules: {not_found(missing, modules)} The others match {len(targets)} layers.", stacklevel=2
            )
        elif missing and not config.exclude_modules:
            raise PacaError(
                f"Target modules {sorted(wanted)} not found in the base model:\n{not_found(missing, modules)}\n"
                f"Layers of this model that can be adapted: {adaptable_names(modules)}. Please check the target "
                "modules and try again, or pass target_modules='all-linear'."
            )

    def _prepare_adapter_config(self, peft_config: PacaConfig, model_config: dict[str, Any]) -> PacaConfig:
        if peft_config.target_modules is None and model_config["model_type"] not in self.target_module_mapping:
            if peft_config.target_parameters:
                peft_config.target_modules = []
                return peft_config
            raise PacaError(
                f"Please specify `target_modules` in `peft_config`: the usual ones of a model of type "
                f"{model_config['model_type']!r} are not known. Pass a list of layer names, or 'all-linear'."
            )
        return super()._prepare_adapter_config(peft_config, model_config)


def _cannot_move(config: PacaConfig, targets: Mapping[str, nn.Module], experts: list[str]) -> list[str]:
    """Layers whose weight cannot keep the columns that were trained before."""
    if config.reselect_every is None:
        return []
    kinds = {name: layer_kind(getattr(module, "base_layer", module)) for name, module in targets.items()}
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
    bases: dict[str, Any] = {name: getattr(module, "base_layer", module) for name, module in targets.items()}
    return [
        f"bias={config.bias!r} cannot train the bias of {name}, which {type(base).__name__} keeps as a plain tensor "
        "and not as a parameter; pass bias='none', or leave the layer out."
        for name, base in bases.items()
        if isinstance(getattr(base, "bias", None), Tensor) and not isinstance(base.bias, nn.Parameter)
    ]
