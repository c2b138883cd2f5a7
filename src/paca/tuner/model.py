"""`PacaModel`, the class that PEFT calls: to adapt a model, to run it, to merge, save and load its adapters.

It holds the wiring. The work is done by functions over layers in the files beside this one: `targets` says which
layers a configuration means, `connections` which columns of these are trained, `merging` and `saving` what their names
say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import get_ident
from types import MappingProxyType
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, init_empty_weights
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn

from ..errors import PacaError
from .config import PacaConfig, alpha_of, rank_of, whole_runs
from .connections import read_columns, require_selected, share_gathers
from .layers.attention import Attention
from .layers.base import PacaLayer, columns_in
from .layers.bnb_cpu import apply_cpu_workarounds
from .layers.experts import Experts, add_experts_adapter, targeted_parameters
from .layers.find import adapter_layers, choosable_layers, paca_layers, shared_places
from .layers.kinds import layer_kind
from .layers.quantized import QuantizedLinear, unpacked_sizes
from .layers.unquantized import unquantize
from .merging import all_or_none, merge_dequantized
from .saving import is_fresh, load_own_entries, own_entries, split_own_entries
from .select import is_plain_random, needs_data, select
from .selection import layer_seed
from .targets.resolve import resolve_targets

logger = logging.getLogger(__name__)

TRL_REFERENCE = "ref"


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

    unselected: frozenset[str] = frozenset()  # adapters whose connections wait for data
    # Of adapters that reselect by what a strategy has seen of data, the scores by layer.
    selection_scores: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})

    _layers: tuple[PacaLayer, ...]  # all of them, so that no forward has to look for them
    _places: dict[int, list[tuple[nn.Module, str]]]  # of modules that stand at several places, by id
    _trained_before: set[str]  # the base model's trainable parameters, before the first adapter

    def adapter_layers(self, adapter_name: str) -> dict[str, PacaLayer]:
        """The layers of an adapter, by the names that they, or their expert weights, have in the base model."""
        return adapter_layers(self.model, adapter_name)

    def choosable_layers(self, adapter_name: str) -> dict[str, PacaLayer]:
        """The same, without those whose connections are all trained."""
        return choosable_layers(self.model, adapter_name)

    # Adapters are made

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put adapted layers in place of the targeted ones, or add an adapter to them."""
        config = self.peft_config[adapter_name]
        twin = next((name for name, own in self.peft_config.items() if own is config and name != adapter_name), None)
        try:
            resolve_targets(model, config, kwargs.get("state_dict"))
            if not config._being_loaded:
                _draw_seed(config)
            self._places = shared_places(model)
            if len(self.peft_config) == 1:
                named = model.named_parameters()
                self._trained_before = {name for name, parameter in named if parameter.requires_grad}
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            self._forget(model, adapter_name)
            raise
        for module in model.modules():  # also the layers that are not adapted: gradients pass through them
            apply_cpu_workarounds(module)
        self._layers = tuple(paca_layers(model).values())
        layers = adapter_layers(model, adapter_name)
        try:
            waits = twin in self.unselected if twin else not config._being_loaded and needs_data(config)
            if waits:
                self.unselected = self.unselected | {adapter_name}
            if twin:
                _take_connections(layers.values(), adapter_name, twin)
            else:
                has_its_own = waits or config._being_loaded or is_plain_random(config)
                choosable = choosable_layers(model, adapter_name)
                self._set_connections(adapter_name, {} if has_its_own else select(config, choosable, adapter_name))
        except Exception:
            self._undo_injection(adapter_name)
            raise
        share_gathers(layers, adapter_name, config.aligned)
        adapted = sum(layer.paca_delta[adapter_name].numel() for layer in layers.values())
        base = sum(size for name, size in unpacked_sizes(model).items() if "paca_" not in name)
        logger.info(
            "PaCA adapter %r: %d layers, %s of %s weights (%.2f %%)",
            *(adapter_name, len(layers), f"{adapted:,}", f"{base:,}", 100 * adapted / max(base, 1)),
        )

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
        if isinstance(parent, Attention):
            return  # its output projection is adapted with it
        layer: Any = target
        if not isinstance(target, PacaLayer):
            layer = _new_layer(target, adapter_name, get_quantization_kwargs(self.model))
        for name, part in layer.parts(current_key):
            _add_adapter(part, name, adapter_name, peft_config)
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
                _add_adapter(layer, name, adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                layer.paca_delta[adapter_name].requires_grad_(False)
        return names

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module wherever it stands: a layer that two parents share stays shared."""
        whole = (QuantizedLinear, Attention)
        if isinstance(new_module, whole) or isinstance(child, (*whole, Experts)):
            # PEFT's also moves it, which updates on the meta device forbid, and expects a weight of it (HQQ has none).
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)
        for other, name in self._places.get(id(child), ()):
            if getattr(other, name) is child:
                setattr(other, name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """PEFT's, which makes new parameters; they stay as trainable as the old ones were."""
        layers = self.adapter_layers(adapter_name).values()
        trained = [layer.paca_delta[adapter_name].requires_grad for layer in layers]
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer, requires_grad in zip(layers, trained, strict=True):
            layer.paca_delta[adapter_name].requires_grad_(requires_grad)

    def set_connections(self, adapter_name: str, indices: Mapping[str, Tensor]) -> None:
        """Train these connections, by layer ascending and of shape `(r,)`; the updates stay what they are."""
        self.unselected = self.unselected - {adapter_name}
        self._set_connections(adapter_name, indices)

    def _set_connections(self, adapter_name: str, indices: Mapping[str, Tensor]) -> None:
        layers, config = self.adapter_layers(adapter_name), self.peft_config[adapter_name]
        for name, chosen in indices.items():
            layers[name].set_connections(adapter_name, chosen)
        prefix = getattr(self.model, "base_model_prefix", "")
        read_columns(layers, adapter_name, config, prefix, only_check=adapter_name in self.unselected)

    def _forget(self, model: nn.Module, adapter_name: str) -> None:
        """After a refused injection: the model and its other adapters as they were."""
        if len(self.peft_config) > 1:
            for layer in adapter_layers(model, adapter_name).values():
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

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's, by one walk over the model where nothing but adapted layers has anything to switch."""
        modules = list(self.model.modules())
        layers = [module for module in modules if isinstance(module, PacaLayer)]
        if any(isinstance(module, AuxiliaryTrainingWrapper) for module in modules) or any(
            layer.merged_adapters for layer in layers
        ):
            super().set_adapter(adapter_name, inference_mode=inference_mode)
            return
        for layer in layers:
            layer.set_adapter(adapter_name, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    # The model runs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward, with the columns of all layers in their weights."""
        with columns_in(self._layers):
            return super().forward(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Around each forward and `generate` of a `PeftModel`: the columns are in the weights for all of it.

        Hands `adapter_names`, one per row of the batch, to every layer, and to those in `modules_to_save`.
        """
        names = kwargs.get("adapter_names")
        if self.unselected and self.training and torch.is_grad_enabled():
            require_selected(self._layers, self.unselected.intersection(self.active_adapters), self.peft_config)
        if names is None:
            with columns_in(self._layers):
                yield
            return
        if self.training:
            raise PacaError("Cannot pass `adapter_names` when the model is in training mode.")
        layers = paca_layers(self).values()
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
        hand_out = partial(_with_adapter_names, adapter_names=names, thread=get_ident())
        saved = [module for module in self.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        handles = [module.register_forward_pre_hook(hand_out, with_kwargs=True) for module in [*layers, *saved]]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # Adapters are merged

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Make adapters' columns part of the base weights, in every layer or, if `safe_merge` objects, in none."""
        with all_or_none(paca_layers(self.model), adapter_names, safe_merge):
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        self._places = shared_places(self.model)
        layers = paca_layers(self.model)
        options = kwargs.get("adapter_names"), kwargs.get("safe_merge", False)
        for layer in layers.values():
            layer.give_back()
        with all_or_none(layers, *options) if merge else nullcontext():
            return super()._unload_and_optionally_merge(merge=merge, **kwargs)

    @torch.no_grad()
    def merge_and_dequantize(
        self, dtype: torch.dtype = torch.bfloat16, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge adapters of a quantized model into an ordinary one, exactly: nothing is quantized again.

        The model is converted layer by layer. It can be saved and loaded like one that was never quantized.

            merged = model.merge_and_dequantize(torch.bfloat16)
            merged.save_pretrained("merged")

        Args:
            dtype: Of all weights of the result.
            adapter_names: The adapters; None merges the active ones.

        Returns:
            The base model, without adapters and without quantization.
        """
        merge_dequantized(paca_layers(self.model).values(), dtype, adapter_names)
        return unquantize(self.unload(), dtype)

    # Adapters are saved and loaded

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PacaConfig, adapter_name: str, **kwargs: Any
    ) -> dict[str, Tensor]:
        state = super()._get_adapter_state_dict(model=model, config=config, adapter_name=adapter_name, **kwargs)
        return {**state, **own_entries(model, config, adapter_name, state)}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PacaConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state_dict, own = split_own_entries(state_dict)
        state_dict = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        tuner = getattr(model, "base_model", model)
        try:
            state_dict = load_own_entries(model, config, adapter_name, state_dict, own)
        except PacaError:
            if isinstance(tuner, cls) and is_fresh(tuner.adapter_layers(adapter_name), adapter_name, config):
                tuner._undo_injection(adapter_name)  # nothing is lost with an adapter that this load has made
            raise
        if isinstance(tuner, cls):
            tuner.unselected = tuner.unselected - {adapter_name}
        return state_dict


def _draw_seed(config: PacaConfig) -> None:
    """Keep a seed in a configuration that has none, so that another adapter of it gets the same connections.

    It is drawn anew for every adapter all the same: what draws after it must not depend on whether it is the first.
    """
    if config.random_seed is None or config._seed_is_drawn:
        seed = int(torch.randint(2**31, ()))
        config.random_seed = seed if config.random_seed is None else config.random_seed
        config._seed_is_drawn = True


def _take_connections(layers: Iterable[PacaLayer], adapter_name: str, twin: str) -> None:
    """Give an adapter the connections of another one of the same configuration, however these were chosen.

    TRL's reference adapter gets its updates as well: TRL copies parameters into it by names that LoRA's alone have.
    """
    for layer in layers:
        layer.set_connections(adapter_name, layer.paca_indices[twin])
        if isinstance(layer, QuantizedLinear) and twin in layer.paca_columns:
            layer.set_columns(adapter_name, layer.paca_columns[twin])
        if adapter_name == TRL_REFERENCE:
            layer.copy_updates(adapter_name, twin)


def _new_layer(target: nn.Module, adapter_name: str, quantization: dict[str, Any]) -> PacaLayer:
    kind = layer_kind(target)
    if kind is None:
        raise PacaError(f"Target module {target} is not supported.")
    layer = kind.layer_class(target, **(quantization if issubclass(kind.layer_class, QuantizedLinear) else {}))
    for _, part in layer.parts(""):
        part._active_adapter = adapter_name
    return layer


def _add_adapter(layer: PacaLayer, name: str, adapter_name: str, config: PacaConfig) -> None:
    rank, alpha = rank_of(config, name), alpha_of(config, name)
    if layer.trained_whole:
        rank, alpha = layer.in_features, alpha * layer.in_features / rank  # scaled as the other layers are
    elif config.clamp_rank and rank > layer.in_features:
        logger.warning("clamp_rank: r=%d of %s is capped at its %d connections", rank, name, layer.in_features)
        rank = whole_runs(config, rank, layer.in_features)
    layer.update_layer(
        adapter_name,
        r=rank,
        paca_alpha=alpha,
        seed=layer_seed(config.random_seed, name),
        init_weights=config.init_weights,
    )


def _with_adapter_names(
    layer: nn.Module, args: Any, kwargs: Any, adapter_names: list[str], thread: int
) -> tuple[Any, Any]:
    """The names of a batch's adapters, for the thread whose batch it is: others run over the same layers."""
    return args, {**kwargs, "adapter_names": adapter_names} if get_ident() == thread else kwargs
