"""`PacaModel`: which module of a model gets which adapted layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import init_empty_weights
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import nn

from ..errors import PacaError
from .config import PacaConfig, alpha_of, rank_of, whole_runs
from .connections import ConnectedModel
from .layers.attention import Attention
from .layers.base import PacaLayer
from .layers.experts import Experts, add_experts_adapter, targeted_parameters
from .layers.find import paca_layers, shared_places
from .layers.kinds import layer_kind
from .layers.quantized import QuantizedLinear, unpacked_sizes
from .merging import MergedModel
from .saving import SavedModel
from .selection import layer_seed
from .targets.resolve import TargetedModel

logger = logging.getLogger(__name__)


class PacaModel(TargetedModel, ConnectedModel, MergedModel, SavedModel):
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
            self._places = shared_places(model)
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
        self._layers = tuple(paca_layers(model).values())
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
            for layer in paca_layers(model).values():
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
            options = get_quantization_kwargs(self.model)
            layer = self._create_new_module(peft_config, adapter_name, target, **options)
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

    @staticmethod
    def _create_new_module(config: PacaConfig, adapter_name: str, target: nn.Module, **kwargs: Any) -> PacaLayer:
        kind = layer_kind(target)
        if kind is None:
            raise PacaError(f"Target module {target} is not supported.")
        layer = kind.layer_class(target, **(kwargs if issubclass(kind.layer_class, QuantizedLinear) else {}))
        for _, part in layer.parts(""):
            part._active_adapter = adapter_name
        return layer

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
        layers = [layer for layer in paca_layers(self.model).values() if adapter_name in layer.paca_delta]
        trained = [layer.paca_delta[adapter_name].requires_grad for layer in layers]
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer, requires_grad in zip(layers, trained, strict=True):
            layer.paca_delta[adapter_name].requires_grad_(requires_grad)

    def _report(self, model: nn.Module, adapter_name: str) -> None:
        layers = [layer for layer in paca_layers(model).values() if adapter_name in layer.paca_delta]
        adapted = sum(layer.paca_delta[adapter_name].numel() for layer in layers)
        base = sum(size for name, size in unpacked_sizes(model).items() if "paca_" not in name)
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
        handles = [
            layer.register_forward_pre_hook(partial(_with_adapter_names, adapter_names=names), with_kwargs=True)
            for layer in layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add_adapter(layer: PacaLayer, name: str, adapter_name: str, config: PacaConfig) -> None:
    rank = rank_of(config, name)
    if config.clamp_rank and rank > layer.in_features:
        logger.warning("clamp_rank: r=%d of %s is capped at its %d connections", rank, name, layer.in_features)
        rank = whole_runs(config, rank, layer.in_features)
    layer.update_layer(
        adapter_name,
        r=rank,
        paca_alpha=alpha_of(config, name),
        seed=layer_seed(config.random_seed, name),
        init_weights=config.init_weights,
    )


def _with_adapter_names(layer: nn.Module, args: Any, kwargs: Any, adapter_names: list[str]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": adapter_names}
