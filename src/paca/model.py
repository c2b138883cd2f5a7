"""`PacaModel`: which module of a model gets which adapted layer, and how an adapter is saved and loaded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    init_empty_weights,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn

from .checks import (
    adaptable_names,
    adapter_problems,
    connections,
    not_found,
    raise_together,
    target_problems,
    unmatched_names,
)
from .checks_experts import experts_left_out, parameter_problems
from .column_source import ColumnSource
from .config import PacaConfig
from .errors import PacaError
from .fingerprint import QUANTIZED, ROUNDED, fingerprint, same_columns
from .layers.base import PacaLayer
from .layers.experts import Experts, add_experts_adapter, router_names, targeted_parameters
from .layers.kinds import layer_kind
from .layers.linear import Linear
from .layers.quantized import QuantizedLinear, unpacked_size
from .selection import find_strategy, layer_seed
from .selection.groups import group_layers, same_input_groups
from .selection.problems import layer_problems
from .selection.select import is_plain_random, select_without_data
from .settled import Settled, saved_settings, split
from .shared_gather import SharedGather
from .unquantized import unquantize, unquantized_linear

logger = logging.getLogger(__name__)

FINGERPRINT = "paca_fingerprint"
FINGERPRINT_OF_QUANTIZED = "paca_fingerprint_quantized"
COLUMNS = "paca_columns"
TRAINED = "paca_trained"  # of an adapter whose connections move: those that were being trained
TOUCHED = "paca_touched"  # and those that were since all of them were last
_PEFT_PREFIX = "base_model.model."


class PacaModel(BaseTuner):
    """A base model whose targeted layers show PaCA's columns.

    Made by `peft.get_peft_model(model, PacaConfig(...))`. All checks come first: a call that is refused leaves the
    model as it was.

    Args:
        model: The base model.
        config: A `PacaConfig`.
        adapter_name: Name of the first adapter.
        low_cpu_mem_usage: Create the updates on the meta device, for a load that follows.
        state_dict: If given, the layers to adapt are read from its keys.
    """

    prefix: str = "paca_"
    tuner_layer_cls = PacaLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    selection_scores: dict[str, dict[str, Tensor]]  # of moving adapters whose strategy has seen data
    unselected: frozenset[str] = frozenset()  # adapters whose connections wait for data

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put adapted layers in place of the targeted ones, or add an adapter to them.

        Args:
            model: The base model.
            adapter_name: The adapter, whose configuration is known already.
            *args: Passed on to PEFT.
            **kwargs: Likewise.

        Raises:
            Exception: Whatever stands against it; the configuration is forgotten again then.
        """
        if not hasattr(self, "selection_scores"):
            self.selection_scores = {}
        try:
            self._check_targets(model, self.peft_config[adapter_name], kwargs.get("state_dict"))
            self._places = _shared_places(model)
            if len(self.peft_config) == 1:
                self._trained_before = {
                    name for name, parameter in model.named_parameters() if parameter.requires_grad
                }
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            self._forget(model, adapter_name)
            raise
        try:
            self._select(model, adapter_name)
            self._read_columns(model, adapter_name)
        except Exception:
            self._undo_injection(adapter_name)
            raise
        self._share_gathers(adapter_name)
        self._layers = tuple(_paca_layers(model).values())
        self._report(model, adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward, all columns written before it.

        Each layer would write its own, too; but between the layers' matrix products that work keeps the threads
        waiting which compute these, and costs several times what it costs in one go.

        Args:
            *args: Passed on to the base model.
            **kwargs: Likewise.

        Returns:
            What the base model returns.
        """
        if not torch.compiler.is_compiling():
            for layer in self._layers:
                layer.show_columns()
        return super().forward(*args, **kwargs)

    def _forget(self, model: nn.Module, adapter_name: str) -> None:
        """After a refused injection: the model and its other adapters as they were."""
        if len(self.peft_config) > 1:
            for layer in _paca_layers(model).values():
                if adapter_name in layer.paca_delta:
                    layer.delete_adapter(adapter_name)
            del self.peft_config[adapter_name]
        elif hasattr(model, "peft_config"):
            del model.peft_config

    def _undo_injection(self, adapter_name: str) -> None:
        """After an injection that went well, but whose adapter cannot be filled."""
        if len(self.peft_config) > 1:
            self.delete_adapter(adapter_name)
            return
        for name, parameter in self.unload().named_parameters():
            parameter.requires_grad_(name in self._trained_before)

    def _select(self, model: nn.Module, adapter_name: str) -> None:
        """Give a new adapter the connections that its strategy chooses; random single ones it has already."""
        config = self.peft_config[adapter_name]
        if config._being_loaded or is_plain_random(config):
            return
        if find_strategy(config.selection).data is not None:
            self.unselected = self.unselected | {adapter_name}
            return
        layers = adapter_layers(model, adapter_name)
        ranks = {name: layer.r[adapter_name] for name, layer in layers.items()}
        for name, indices in select_without_data(config, layers, ranks).items():
            layers[name].set_connections(adapter_name, indices)

    def _share_gathers(self, adapter_name: str) -> None:
        """Let layers that read the same input gather its selected channels once; see `PacaConfig.aligned`."""
        layers = self.adapter_layers(adapter_name)
        for group in group_layers(layers, same_input_groups(self.peft_config[adapter_name].aligned)):
            gather = SharedGather()
            for name in group if len(group) > 1 else ():
                layers[name].gathers[adapter_name] = gather

    def adapter_layers(self, adapter_name: str) -> dict[str, PacaLayer]:
        """The layers that have an adapter.

        Args:
            adapter_name: The adapter.

        Returns:
            The layers, by the names that they, or their expert weights, have in the base model.
        """
        return adapter_layers(self.model, adapter_name)

    def set_connections(self, adapter_name: str, indices: Mapping[str, Tensor]) -> None:
        """Train these connections; the updates stay what they are.

        Args:
            adapter_name: The adapter.
            indices: By layer, ascending, shape `(r,)` each.
        """
        layers = self.adapter_layers(adapter_name)
        for name, chosen in indices.items():
            layers[name].set_connections(adapter_name, chosen)
        self.unselected = self.unselected - {adapter_name}
        self._read_columns(self.model, adapter_name)

    def _require_selected(self) -> None:
        """Refuse to train connections that a strategy has not chosen yet."""
        waiting = sorted(self.unselected.intersection(self.active_adapters))
        if waiting and not all(layer.disable_adapters for layer in self._layers):
            raise PacaError(
                f"selection={self.peft_config[waiting[0]].selection!r} needs data: call "
                f"paca.select_connections(model, dataloader) before training adapter {waiting[0]!r}."
            )

    def _read_columns(self, model: nn.Module, adapter_name: str) -> None:
        """Give a new adapter the unquantized columns that its configuration asks for."""
        config = self.peft_config[adapter_name]
        if config.column_source is None or config._being_loaded or adapter_name in self.unselected:
            return
        layers = {
            name: layer
            for name, layer in _paca_layers(model).items()
            if adapter_name in layer.paca_delta and isinstance(layer, QuantizedLinear)
        }
        if not layers:
            warnings.warn(
                f"column_source={config.column_source!r} is ignored: no targeted layer is quantized, so the base "
                "weights hold the columns already.",
                stacklevel=2,
            )
            return
        source = ColumnSource(config.column_source, getattr(model, "base_model_prefix", ""))
        for name, layer in layers.items():
            indices = layer.paca_indices[adapter_name]
            pretrained = layer.columns.pretrained_columns(indices).t()
            layer.set_columns(adapter_name, source.read(name, indices, layer.in_features, pretrained))

    def _check_targets(
        self, model: nn.Module, config: PacaConfig, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not isinstance(config, PacaConfig):
            raise PacaError(
                f"{type(config).__module__}.{type(config).__name__} is another package's configuration. Take "
                "PacaConfig from this one: `from paca import PacaConfig`."
            )
        config = self._prepare_adapter_config(config, self.get_model_config(model))
        all_linear = isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear"
        config = _maybe_include_all_linear_layers(config, model)
        if all_linear:
            found = set(config.target_modules or ())
            routers = router_names(model) & found
            config.target_modules = found - routers  # type: ignore[assignment]
            experts_left_out(model, config, routers)
        modules = dict(model.named_modules())
        targets = self._targets(config, modules, state_dict)
        if state_dict is None:
            self._check_matches(config, modules, targets)
        ranks = {name: _rank(config, name) for name in targets}
        names = targeted_parameters(model, config.target_parameters or ())
        problems = [
            *target_problems(model, targets, ranks, config.clamp_rank),
            *parameter_problems(model, config.target_parameters or (), {name: _rank(config, name) for name in names}),
        ]
        if not problems and not config._being_loaded:
            sizes = {name: connections(module) for name, module in targets.items()}
            ranks = {name: _whole_runs(config, ranks[name], size) for name, size in sizes.items()}
            problems = layer_problems(config, sizes, ranks) + _cannot_move(config, targets, names)
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

    def _create_and_replace(
        self,
        peft_config: PacaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer: Any = target
        if not isinstance(target, PacaLayer):
            options = get_quantization_kwargs(self.model)
            layer = self._create_new_module(peft_config, adapter_name, target, **options)
        rank = _rank(peft_config, current_key)
        if peft_config.clamp_rank and rank > layer.in_features:
            logger.warning(
                "clamp_rank: r=%d of %s is capped at its %d connections", rank, current_key, layer.in_features
            )
            rank = _whole_runs(peft_config, rank, layer.in_features)
        layer.update_layer(
            adapter_name,
            r=rank,
            paca_alpha=_alpha(peft_config, current_key),
            seed=layer_seed(peft_config.random_seed, current_key),
            init_weights=peft_config.init_weights,
        )
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _inject_parameters(
        self, peft_config: PacaConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Add the adapter to the fused expert weights that `target_parameters` names.

        PEFT's own parametrizes the weights, which makes all experts anew in every forward.
        """
        names = targeted_parameters(model, peft_config.target_parameters or ())
        for name in names:
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                layer = add_experts_adapter(model, name)
                for other, child in self._places.get(id(layer.get_base_layer()), ()):
                    setattr(other, child, model.get_submodule(name.rpartition(".")[0]))
                layer._active_adapter = layer._active_adapter or adapter_name
                layer.update_layer(
                    adapter_name,
                    r=_rank(peft_config, name),
                    paca_alpha=_alpha(peft_config, name),
                    seed=layer_seed(peft_config.random_seed, name),
                    init_weights=peft_config.init_weights,
                )
            if adapter_name not in self.active_adapters:
                layer.paca_delta[adapter_name].requires_grad_(False)
        return names

    @staticmethod
    def _create_new_module(config: PacaConfig, adapter_name: str, target: nn.Module, **kwargs: Any) -> PacaLayer:
        kind = layer_kind(target)
        if kind is None:
            raise PacaError(f"Target module {target} is not supported.")
        layer = kind.layer_class(target, **(kwargs if issubclass(kind.layer_class, QuantizedLinear) else {}))
        layer._active_adapter = adapter_name
        return layer

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module wherever it stands: a layer that two parents share stays shared."""
        if isinstance(new_module, QuantizedLinear) or isinstance(child, Experts):
            # PEFT's also moves it, which updates on the meta device forbid, and expects a weight of it.
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)
        for other, name in self._places.get(id(child), ()):
            if getattr(other, name) is child:
                setattr(other, name, new_module)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        self._places = _shared_places(self.model)
        named = _paca_layers(self.model)
        layers = named.values()
        if merge:
            _check_merge(layers, kwargs.get("adapter_names"), kwargs.get("safe_merge", False))
        for layer in layers:
            if not layer.merged_adapters:
                layer.columns.release()
        base_model = super()._unload_and_optionally_merge(merge=merge, **kwargs)
        if merge:
            _report_merge_errors(named)
        for layer in layers:
            layer.columns.pin()  # a backward pass of before must not write into a weight that nobody keeps
        return base_model

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Make adapters' columns part of the base weights, in every layer or, if `safe_merge` objects, in none.

        Args:
            adapter_names: The adapters; None merges the active ones.
            safe_merge: Check first that all merged values are finite.
        """
        _check_merge(_paca_layers(self.model).values(), adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        _report_merge_errors(_paca_layers(self.model))

    @torch.no_grad()
    def merge_and_dequantize(
        self, dtype: torch.dtype = torch.bfloat16, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge adapters of a quantized model into an ordinary one, exactly: nothing is packed again.

        The model is converted layer by layer. It can be saved and loaded like one that was never quantized.

            merged = model.merge_and_dequantize(torch.bfloat16)
            merged.save_pretrained("merged")

        Args:
            dtype: Of all weights of the result.
            adapter_names: The adapters; None merges the active ones.

        Returns:
            The base model, without adapters and without quantization.
        """
        layers = _paca_layers(self.model).values()
        for layer in layers:
            layer.check_finite(adapter_names, dtype)
        for layer in layers:
            if isinstance(layer, QuantizedLinear):
                layer.base_layer = unquantized_linear(layer.base_layer, layer.adapted_matrix(dtype, adapter_names))
            else:
                layer.merge(adapter_names=adapter_names)
        base_model: Any = self.unload()
        return unquantize(base_model, dtype)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """PEFT's, which makes new parameters; they stay as trainable as the old ones were."""
        layers = [layer for layer in _paca_layers(self.model).values() if adapter_name in layer.paca_delta]
        trained = [layer.paca_delta[adapter_name].requires_grad for layer in layers]
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer, requires_grad in zip(layers, trained, strict=True):
            layer.paca_delta[adapter_name].requires_grad_(requires_grad)

    def _report(self, model: nn.Module, adapter_name: str) -> None:
        layers = [layer for layer in _paca_layers(model).values() if adapter_name in layer.paca_delta]
        adapted = sum(layer.paca_delta[adapter_name].numel() for layer in layers)
        base = sum(unpacked_size(parameter) for name, parameter in model.named_parameters() if "paca_" not in name)
        logger.info(
            "PaCA adapter %r: %d layers, %s of %s weights (%.2f %%)",
            *(adapter_name, len(layers), f"{adapted:,}", f"{base:,}", 100 * adapted / max(base, 1)),
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Before each forward of a `PeftModel`; hands `adapter_names`, one per row of the batch, to every layer."""
        names = kwargs.pop("adapter_names", None)
        if self.unselected and self.training and torch.is_grad_enabled():
            self._require_selected()
        if names is None:
            yield
            return
        if self.training:
            raise PacaError("Cannot pass `adapter_names` when the model is in training mode.")
        layers = _paca_layers(self).values()
        known = {name for layer in layers for name in layer.paca_delta} | {"__base__"}
        unknown = sorted(set(names) - known)
        if unknown:
            raise PacaError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. Known are "
                f"{', '.join(sorted(known))}."
            )
        beams = kwargs.get("num_beams")
        if isinstance(beams, int) and beams > 1:
            names = [name for name in names for _ in range(beams)]
        handles = [
            layer.register_forward_pre_hook(partial(_with_adapter_names, adapter_names=names), with_kwargs=True)
            for layer in layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PacaConfig, adapter_name: str, **kwargs: Any
    ) -> dict[str, Tensor]:
        state = super()._get_adapter_state_dict(model=model, config=config, adapter_name=adapter_name, **kwargs)
        for name, layer in _paca_layers(model).items():
            if f"{name}.paca_indices.{adapter_name}" in state and layer.weight_device().type != "meta":
                if adapter_name in layer.settled:
                    indices, delta = layer.whole_update(adapter_name)
                    state[f"{name}.paca_indices.{adapter_name}"] = indices
                    state[f"{name}.paca_delta.{adapter_name}"] = delta
                    state[f"{name}.{TRAINED}.{adapter_name}"] = layer.paca_indices[adapter_name]
                    state[f"{name}.{TOUCHED}.{adapter_name}"] = layer.touched(adapter_name)
                columns, quantized = layer.trained_from(adapter_name)
                kind = FINGERPRINT_OF_QUANTIZED if quantized else FINGERPRINT
                state[f"{name}.{kind}.{adapter_name}"] = fingerprint(columns)
        return state

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PacaConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        ends = tuple(f".{kind}" for kind in (FINGERPRINT, FINGERPRINT_OF_QUANTIZED, COLUMNS, TRAINED, TOUCHED))
        extras = {key.removeprefix(_PEFT_PREFIX): value for key, value in state_dict.items() if key.endswith(ends)}
        state_dict = {key: value for key, value in state_dict.items() if not key.endswith(ends)}
        state_dict = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        layers = _paca_layers(model)
        for name, layer in layers.items():
            columns = extras.get(f"{name.removeprefix(_PEFT_PREFIX)}.{COLUMNS}")
            if isinstance(layer, QuantizedLinear) and columns is not None:
                state_dict[f"{name}.{COLUMNS}.{adapter_name}"] = columns
        settled = _take_apart(layers, adapter_name, config, state_dict, extras)
        problems = adapter_problems(layers, adapter_name, state_dict)
        if problems and _is_fresh(layers, adapter_name, config):
            _take_back(model, adapter_name)
        raise_together(problems, f"Adapter {adapter_name!r} does not fit this model:")
        config._being_loaded = False
        for name, layer in layers.items():
            layer.settled.pop(adapter_name, None)
            if name in settled:
                layer.columns.take_out()
                layer.settled[adapter_name] = settled[name]
        config._saved_as = saved_settings(adapter_layers(model, adapter_name), adapter_name) if settled else {}
        tuner: Any = getattr(model, "base_model", model)
        if isinstance(tuner, PacaModel):
            tuner.unselected = tuner.unselected - {adapter_name}
        _check_fingerprints(layers, adapter_name, state_dict, extras)
        for name, layer in layers.items():
            if isinstance(layer, QuantizedLinear) and adapter_name in layer.paca_delta:
                layer.set_columns(adapter_name, state_dict.get(f"{name}.{COLUMNS}.{adapter_name}"))
        return state_dict


def _paca_layers(model: nn.Module) -> dict[str, PacaLayer]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PacaLayer)}
    return {name.removeprefix("_fsdp_wrapped_module."): layer for name, layer in layers.items()}


def adapter_layers(model: nn.Module, adapter_name: str) -> dict[str, PacaLayer]:
    """The layers that have an adapter.

    Args:
        model: The base model, or one around it.
        adapter_name: The adapter.

    Returns:
        The layers, by the names that they, or their expert weights, have in the base model.
    """
    found = {}
    for name, layer in _paca_layers(model).items():
        if adapter_name in layer.paca_delta:
            plain = name.removeprefix(_PEFT_PREFIX).replace(".base_layer", "")
            found[f"{plain}.{layer.weight_name}" if isinstance(layer, Experts) else plain] = layer
    return found


def _shared_places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where the modules stand that have more than one place in the model, by their id."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((parent, name))
    return {key: found for key, found in places.items() if len(found) > 1}


def _check_merge(layers: Iterable[PacaLayer], adapter_names: list[str] | None, safe_merge: bool) -> None:
    for layer in layers:
        layer.check_merge(adapter_names, safe_merge)


def _report_merge_errors(layers: dict[str, PacaLayer]) -> None:
    """Log what packing the merged weights again has cost, layer by layer."""
    for name, layer in layers.items():
        if isinstance(layer, QuantizedLinear) and layer.merge_error is not None:
            logger.info(
                "merged into %s (%s): relative error of the weight %.2e",
                *(name.removeprefix(_PEFT_PREFIX), layer.backend.backend_name, layer.merge_error),
            )


def _rank(config: PacaConfig, name: str) -> int:
    return config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)


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


def _take_apart(
    layers: dict[str, PacaLayer],
    adapter_name: str,
    config: PacaConfig,
    state: dict[str, Tensor],
    extras: Mapping[str, Tensor],
) -> dict[str, Settled]:
    """Put the trained connections of a saved moving adapter into `state`, and return the settled ones by layer."""
    settled: dict[str, Settled] = {}
    for name, layer in layers.items() if config.reselect_every is not None else ():
        plain = name.removeprefix(_PEFT_PREFIX)
        trained, touched = (extras.get(f"{plain}.{kind}") for kind in (TRAINED, TOUCHED))
        keys = [f"{name}.{kind}.{adapter_name}" for kind in ("paca_indices", "paca_delta")]
        if trained is None or touched is None or any(key not in state for key in keys):
            continue
        indices, delta = (state[key] for key in keys)
        state[keys[1]], settled[name] = split(indices, delta, trained, touched, layer.delta_dim)
        state[keys[0]] = trained
    return settled


def _whole_runs(config: PacaConfig, rank: int, connections: int) -> int:
    """The rank, capped at the whole runs of the layer where `clamp_rank` says so."""
    return min(rank, connections // config.run_length * config.run_length) if config.clamp_rank else rank


def _alpha(config: PacaConfig, name: str) -> float:
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.paca_alpha)
    return config.r if alpha is None else alpha


def _with_adapter_names(layer: nn.Module, args: Any, kwargs: Any, adapter_names: list[str]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": adapter_names}


def _check_fingerprints(
    layers: dict[str, PacaLayer], adapter_name: str, state: dict[str, Tensor], fingerprints: dict[str, Tensor]
) -> None:
    """Warn of layers whose columns are not those that the adapter was trained on."""
    others = []
    for name, layer in layers.items():
        plain, quantized = (
            fingerprints.get(f"{name.removeprefix(_PEFT_PREFIX)}.{kind}")
            for kind in (FINGERPRINT, FINGERPRINT_OF_QUANTIZED)
        )
        saved = quantized if plain is None else plain
        indices = state.get(f"{name}.paca_indices.{adapter_name}")
        if saved is None or indices is None or layer.weight_device().type == "meta":
            continue
        tolerance = QUANTIZED if quantized is not None or isinstance(layer, QuantizedLinear) else ROUNDED
        if not same_columns(saved, layer.columns.pretrained_columns(indices), tolerance):
            others.append(name.removeprefix(_PEFT_PREFIX))
    if others:
        warnings.warn(
            f"Adapter {adapter_name!r} was trained on other pretrained weights than this model's, in {len(others)} "
            f"layers: {', '.join(others[:5])}{', …' if len(others) > 5 else ''}. Its outputs will not be those of "
            "training; load the base model that its configuration names.",
            stacklevel=2,
        )


def _is_fresh(layers: dict[str, PacaLayer], adapter_name: str, config: PacaConfig) -> bool:
    """Whether the adapter was made by the load that is going on, so that nothing is lost with it."""
    deltas = [layer.paca_delta[adapter_name] for layer in layers.values() if adapter_name in layer.paca_delta]
    untouched = not config.init_weights or all(delta.device.type == "meta" or not delta.any() for delta in deltas)
    return config._being_loaded and untouched


def _take_back(model: Any, adapter_name: str) -> None:
    """Undo the injection that a load began: the model and its other adapters as they were before."""
    tuner: Any = getattr(model, "base_model", model)
    if not isinstance(tuner, PacaModel):
        return
    several = len(tuner.peft_config) > 1
    tuner._undo_injection(adapter_name)
    if several:
        model.peft_config.pop(adapter_name, None)


__all__ = ["Linear", "PacaModel"]
