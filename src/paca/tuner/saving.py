"""What an adapter's file holds beside PEFT's own entries, and what is checked before a file is taken."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..method.columns.retired import RetiredColumns, saved_settings, split
from ..method.columns.sharded import is_sharded
from ..method.fingerprint import QUANTIZED, ROUNDED, fingerprint, same_columns
from .config import PacaConfig
from .layers.base import PacaLayer
from .layers.find import PEFT_PREFIX, adapter_layers, paca_layers
from .layers.quantized import QuantizedLinear
from .messages import raise_together

FINGERPRINT = "paca_fingerprint"
FINGERPRINT_OF_QUANTIZED = "paca_fingerprint_quantized"
COLUMNS = "paca_columns"
TRAINED = "paca_trained"  # of an adapter whose connections move: those that were being trained
VISITED = "paca_visited"  # and those visited in the current sweep over all connections


class SavedModel(BaseTuner):
    """A model whose adapters can be saved and loaded."""

    unselected: frozenset[str]

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PacaConfig, adapter_name: str, **kwargs: Any
    ) -> dict[str, Tensor]:
        state = super()._get_adapter_state_dict(model=model, config=config, adapter_name=adapter_name, **kwargs)
        for name, layer in paca_layers(model).items():
            if f"{name}.paca_indices.{adapter_name}" in state and layer.weight_device().type != "meta":
                if adapter_name in layer.retired:
                    indices, delta = layer.whole_update(adapter_name)
                    state[f"{name}.paca_indices.{adapter_name}"] = indices
                    state[f"{name}.paca_delta.{adapter_name}"] = delta.detach()
                    state[f"{name}.{TRAINED}.{adapter_name}"] = layer.paca_indices[adapter_name]
                    state[f"{name}.{VISITED}.{adapter_name}"] = layer.visited(adapter_name)
                if not _is_divided(layer):  # else it takes all ranks; see full_adapter_state_dict
                    state.update(_fingerprint(name, layer, adapter_name))
        gathered = {key: value for key, value in kwargs["state_dict"].items() if f".{FINGERPRINT}" in key}
        return {**state, **gathered}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PacaConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        ends = tuple(f".{kind}" for kind in (FINGERPRINT, FINGERPRINT_OF_QUANTIZED, COLUMNS, TRAINED, VISITED))
        extras = {key.removeprefix(PEFT_PREFIX): value for key, value in state_dict.items() if key.endswith(ends)}
        state_dict = {key: value for key, value in state_dict.items() if not key.endswith(ends)}
        state_dict = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        layers = paca_layers(model)
        for name, layer in layers.items():
            columns = extras.get(f"{name.removeprefix(PEFT_PREFIX)}.{COLUMNS}")
            if isinstance(layer, QuantizedLinear) and columns is not None:
                state_dict[f"{name}.{COLUMNS}.{adapter_name}"] = columns
        retired = _take_apart(layers, adapter_name, config, state_dict, extras)
        problems = adapter_problems(layers, adapter_name, state_dict)
        if problems and _is_fresh(layers, adapter_name, config):
            _take_back(model, adapter_name)
        raise_together(problems, f"Adapter {adapter_name!r} does not fit this model:")
        config._being_loaded = False
        for name, layer in layers.items():
            layer.retired.pop(adapter_name, None)
            if name in retired:
                layer.columns.take_out()
                layer.retired[adapter_name] = retired[name]
        config._saved_as = saved_settings(adapter_layers(model, adapter_name), adapter_name) if retired else {}
        tuner: Any = getattr(model, "base_model", model)
        if isinstance(tuner, SavedModel):
            tuner.unselected = tuner.unselected - {adapter_name}
        _check_fingerprints(layers, adapter_name, state_dict, extras)
        for name, layer in layers.items():
            if isinstance(layer, QuantizedLinear) and adapter_name in layer.paca_delta:
                layer.set_columns(adapter_name, state_dict.get(f"{name}.{COLUMNS}.{adapter_name}"))
        return state_dict


def full_adapter_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The state dict of an adapter whose updates are divided over ranks, to be saved as any other.

    A collective call: every rank makes it, and rank 0 saves.

        state = full_adapter_state_dict(model)
        model.save_pretrained("adapter", state_dict=state, is_main_process=rank == 0)

    Args:
        model: A `PeftModel`, sharded by FSDP2 or whole, of this method or another.
        adapter_name: The adapter.

    Returns:
        Whole tensors on the CPU; on the other ranks nothing.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: dict[str, Any] = dict(get_model_state_dict(model, options=options))
    for name, layer in paca_layers(model).items():
        if adapter_name in layer.paca_delta and _is_divided(layer):
            own = _fingerprint(name, layer, adapter_name)
            state.update(own if state else {})
    return state


def _is_divided(layer: PacaLayer) -> bool:
    """Whether the base weight is divided over ranks; a packed one may have no parameter of that name (HQQ)."""
    return is_sharded(layer.get_base_layer()._parameters.get(layer.weight_name))


def _fingerprint(name: str, layer: PacaLayer, adapter_name: str) -> dict[str, Tensor]:
    columns, quantized = layer.trained_from(adapter_name)
    kind = FINGERPRINT_OF_QUANTIZED if quantized else FINGERPRINT
    return {f"{name}.{kind}.{adapter_name}": fingerprint(columns)}


def _take_apart(
    layers: dict[str, PacaLayer],
    adapter_name: str,
    config: PacaConfig,
    state: dict[str, Tensor],
    extras: Mapping[str, Tensor],
) -> dict[str, RetiredColumns]:
    """Put the trained connections of a saved moving adapter into `state`, and return the retired ones by layer."""
    retired: dict[str, RetiredColumns] = {}
    for name, layer in layers.items() if config.reselect_every is not None else ():
        plain = name.removeprefix(PEFT_PREFIX)
        trained, visited = (extras.get(f"{plain}.{kind}") for kind in (TRAINED, VISITED))
        keys = [f"{name}.{kind}.{adapter_name}" for kind in ("paca_indices", "paca_delta")]
        if trained is None or visited is None or any(key not in state for key in keys):
            continue
        indices, delta = (state[key] for key in keys)
        state[keys[1]], retired[name] = split(indices, delta, trained, visited, layer.delta_dim)
        state[keys[0]] = trained
    return retired


def _check_fingerprints(
    layers: dict[str, PacaLayer], adapter_name: str, state: dict[str, Tensor], fingerprints: dict[str, Tensor]
) -> None:
    """Warn of layers whose columns are not those that the adapter was trained on."""
    others = []
    for name, layer in layers.items():
        plain, quantized = (
            fingerprints.get(f"{name.removeprefix(PEFT_PREFIX)}.{kind}")
            for kind in (FINGERPRINT, FINGERPRINT_OF_QUANTIZED)
        )
        saved = quantized if plain is None else plain
        indices = state.get(f"{name}.paca_indices.{adapter_name}")
        if saved is None or indices is None or layer.weight_device().type == "meta":
            continue
        if adapter_name in layer.retired:  # the file's fingerprint is that of all its connections
            retired = layer.retired[adapter_name].indices
            indices = torch.cat([indices, retired.to(indices.device)]).sort().values
        tolerance = QUANTIZED if quantized is not None or isinstance(layer, QuantizedLinear) else ROUNDED
        if not same_columns(saved, layer.columns.pretrained_columns(indices), tolerance):
            others.append(name.removeprefix(PEFT_PREFIX))
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
    if not isinstance(tuner, SavedModel):
        return
    several = len(tuner.peft_config) > 1
    tuner._undo_injection(adapter_name)
    if several:
        model.peft_config.pop(adapter_name, None)


def adapter_problems(
    layers: Mapping[str, PacaLayer], adapter_name: str, state: Mapping[str, torch.Tensor]
) -> list[str]:
    """What stands against loading a saved adapter into layers that were made for it.

    Args:
        layers: The adapted layers by name.
        adapter_name: The adapter.
        state: The saved tensors, under the names that they have in the model.

    Returns:
        One line per problem.
    """
    problems = []
    for name, layer in layers.items():
        if adapter_name not in layer.paca_delta:
            continue
        for kind, wanted in (("paca_delta", layer.paca_delta), ("paca_indices", layer.paca_indices)):
            tensor = state.get(f"{name}.{kind}.{adapter_name}")
            if tensor is None:
                problems.append(f"{name}: the file has no {kind}.")
            elif tensor.shape != wanted[adapter_name].shape:
                problems.append(
                    f"{name}: {kind} is {tuple(tensor.shape)} in the file, this model needs "
                    f"{tuple(wanted[adapter_name].shape)}."
                )
            elif kind == "paca_indices":
                problems.extend(_index_problems(name, tensor, layer.in_features))
        columns = state.get(f"{name}.paca_columns.{adapter_name}")
        if columns is not None and columns.shape != layer.paca_delta[adapter_name].shape:
            problems.append(
                f"{name}: paca_columns is {tuple(columns.shape)} in the file, this model needs "
                f"{tuple(layer.paca_delta[adapter_name].shape)}."
            )
    return problems


def _index_problems(name: str, indices: torch.Tensor, connections: int) -> Iterable[str]:
    if indices.is_floating_point() or indices.is_complex() or indices.device.type == "meta":
        yield f"{name}: paca_indices are {indices.dtype}, not integers."
        return
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < connections:
        yield (
            f"{name}: paca_indices reach from {int(indices.min())} to {int(indices.max())}, but the layer has "
            f"connections 0 to {connections - 1}."
        )
    elif (indices.diff() <= 0).any():
        yield f"{name}: paca_indices are not ascending, or name a connection twice."
