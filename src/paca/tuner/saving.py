"""What an adapter's file holds besides PEFT's own entries, and what is checked before a file is taken."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, cast

from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import PacaError, first_few
from ..method.columns.retired import RetiredColumns, saved_settings, split
from ..method.columns.sharded import is_sharded
from ..method.fingerprint import QUANTIZED, ROUNDED, fingerprint, same_columns
from .adapter_file import (
    FINGERPRINT,
    FINGERPRINT_OF_QUANTIZED,
    LayerFingerprint,
    read_fingerprints,
    weights_file,
)
from .config import PacaConfig
from .layers.base import PacaLayer
from .layers.find import PEFT_PREFIX, adapter_layers, paca_layers
from .layers.quantized import QuantizedLinear
from .messages import raise_together

COLUMNS = "paca_columns"
TRAINED = "paca_trained"  # of an adapter whose connections move: those that were being trained
VISITED = "paca_visited"  # and those visited in the current sweep over all connections


def own_entries(
    model: nn.Module, config: PacaConfig, adapter_name: str, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What an adapter's file holds in place of PEFT's entries in `state`: where connections have moved, all of them.

    The fingerprints of all layers go to the configuration, which is saved last and writes them into the file.
    """
    own: dict[str, Tensor] = {}
    for name, layer in paca_layers(model).items():
        if f"{name}.paca_indices.{adapter_name}" not in state or layer.weight_device().type == "meta":
            continue
        if adapter_name in layer.retired:
            indices, delta = layer.whole_update(adapter_name)
            own[f"{name}.paca_indices.{adapter_name}"] = indices
            own[f"{name}.paca_delta.{adapter_name}"] = delta.detach()
            own[f"{name}.{TRAINED}.{adapter_name}"] = layer.paca_indices[adapter_name]
            own[f"{name}.{VISITED}.{adapter_name}"] = layer.visited(adapter_name)
        if not _is_sharded(layer):  # else it takes all ranks, and `full_adapter_state_dict` has done it
            _keep_fingerprint(name, layer, config, adapter_name)
    return own


def full_adapter_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The state dict of an adapter whose updates are sharded, to be saved as any other.

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
    config = cast("Any", model).peft_config[adapter_name]
    for name, layer in paca_layers(model).items():
        if adapter_name in layer.paca_delta and _is_sharded(layer):
            _keep_fingerprint(name, layer, config, adapter_name)  # gathers the columns
    return state


def _is_sharded(layer: PacaLayer) -> bool:
    """Whether the base weight is sharded; a quantized one may have no parameter of that name (HQQ)."""
    return is_sharded(layer.get_base_layer()._parameters.get(layer.weight_name))


def _keep_fingerprint(name: str, layer: PacaLayer, config: PacaConfig, adapter_name: str) -> None:
    columns, quantized = layer.trained_from(adapter_name)
    kind = FINGERPRINT_OF_QUANTIZED if quantized else FINGERPRINT
    indices = layer.whole_update(adapter_name)[0].cpu()
    own = LayerFingerprint(kind, indices, fingerprint(columns))
    config._unsaved_fingerprints = {**config._unsaved_fingerprints, name: own}


def split_own_entries(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a file's entries: those that PEFT knows, and this package's own by their names in the base model."""
    ends = tuple(f".{kind}" for kind in (FINGERPRINT, FINGERPRINT_OF_QUANTIZED, COLUMNS, TRAINED, VISITED))
    own = {key.removeprefix(PEFT_PREFIX): value for key, value in state.items() if key.endswith(ends)}
    return {key: value for key, value in state.items() if not key.endswith(ends)}, own


def load_own_entries(
    model: nn.Module, config: PacaConfig, adapter_name: str, state: dict[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Check a file against the model, then give the layers what PEFT does not load.

    Args:
        model: The model.
        config: The adapter's configuration.
        adapter_name: The adapter.
        state: The entries that PEFT knows, under the names that they have in the model.
        own: The others, by their names in the base model.

    Returns:
        The entries for PEFT to load.

    Raises:
        PacaError: If the file does not fit the model; nothing was changed then.
    """
    layers = paca_layers(model)
    own = {**{key.removeprefix(PEFT_PREFIX): value for key, value in config._fingerprints.items()}, **own}
    columns = {
        name: own[key]
        for name, layer in layers.items()
        if isinstance(layer, QuantizedLinear) and (key := f"{name.removeprefix(PEFT_PREFIX)}.{COLUMNS}") in own
    }
    state = {**state, **{f"{name}.{COLUMNS}.{adapter_name}": value for name, value in columns.items()}}
    indices = {name: state[key] for name in layers if (key := f"{name}.paca_indices.{adapter_name}") in state}
    moved = config.reselect_every is not None
    retired = _split_retired(layers, adapter_name, state, own) if moved else {}
    raise_together(adapter_problems(layers, adapter_name, state), f"Adapter {adapter_name!r} does not fit this model:")
    config._being_loaded = False
    config._fingerprints = {}  # a later state dict is not this file's
    for name, layer in layers.items():
        layer.retired.pop(adapter_name, None)
        if name in retired:
            layer.retired[adapter_name] = retired[name]
    config._saved_as = saved_settings(adapter_layers(model, adapter_name), adapter_name) if retired else {}
    _compare_fingerprints(layers, adapter_name, indices, own)
    for name, layer in layers.items():
        if isinstance(layer, QuantizedLinear) and adapter_name in layer.paca_delta:
            layer.set_columns(adapter_name, columns.get(name))
    return state


def _split_retired(
    layers: Mapping[str, PacaLayer], adapter_name: str, state: dict[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, RetiredColumns]:
    """Leave in `state` the connections that are trained, of all that the file has; return the others by layer."""
    retired: dict[str, RetiredColumns] = {}
    for name, layer in layers.items():
        plain = name.removeprefix(PEFT_PREFIX)
        trained, visited = (own.get(f"{plain}.{kind}") for kind in (TRAINED, VISITED))
        indices, delta = (f"{name}.{kind}.{adapter_name}" for kind in ("paca_indices", "paca_delta"))
        if trained is None or visited is None or indices not in state or delta not in state:
            continue
        state[delta], retired[name] = split(state[indices], state[delta], trained, visited, layer.delta_dim)
        state[indices] = trained
    return retired


def adapter_problems(layers: Mapping[str, PacaLayer], adapter_name: str, state: Mapping[str, Tensor]) -> list[str]:
    """Reasons, one line each, why a saved adapter does not fit the layers that were made for it."""
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


def _index_problems(name: str, indices: Tensor, connections: int) -> Iterator[str]:
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


def check_base_model(model: nn.Module, source: str | os.PathLike[str], adapter_name: str = "default") -> None:
    """Warn of layers whose pretrained weights are not those that a saved adapter was trained on.

    `PeftModel.from_pretrained`, and `load_adapter` under a new name, do it by themselves. Where weights are loaded
    into an adapter that is there, PEFT hands over tensors alone, and the fingerprints are in the file's metadata:

        model.load_adapter("checkpoint-100", "default")
        paca.check_base_model(model, "checkpoint-100")

    Args:
        model: A model with an adapter of the same layers.
        source: The saved adapter, a folder or the name of a repository on the Hub.
        adapter_name: The adapter in the model.

    Raises:
        PacaError: If there is no safetensors file, or none that carries fingerprints: nothing can be compared then.
    """
    path = weights_file(os.fspath(source))
    own = {key.removeprefix(PEFT_PREFIX): value for key, value in read_fingerprints(path).items()}
    if not own:
        raise PacaError(
            f"{os.fspath(source)!r} has no {os.path.basename(path)} with fingerprints, so that its base model can't "
            "be compared: it is not PaCA's, a pickle, or not written by PeftModel.save_pretrained. Save it with that, "
            "on the base model that it was trained on."
        )
    saved = {key.removeprefix(PEFT_PREFIX): value for key, value in load_file(path).items()}
    layers = {name: layer for name, layer in paca_layers(model).items() if adapter_name in layer.paca_delta}
    keys = {name: f"{name.removeprefix(PEFT_PREFIX)}.paca_indices" for name in layers}
    indices = {name: saved[key] for name, key in keys.items() if key in saved}
    if not indices:
        raise PacaError(
            f"No layer with an adapter {adapter_name!r} in this model has one in {path}. Load the adapter first, and "
            "pass the name under which the model has it."
        )
    problems = [_index_problems(name, chosen, layers[name].in_features) for name, chosen in indices.items()]
    raise_together(list(chain(*problems)), f"{path} does not fit this model:")
    _compare_fingerprints(layers, adapter_name, indices, own)


def _compare_fingerprints(
    layers: Mapping[str, PacaLayer], adapter_name: str, indices: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """Warn of layers whose columns are not those that the adapter was trained on.

    Args:
        layers: By name, with all that the file says loaded into them or not.
        adapter_name: For the warning.
        indices: By layer, all connections that the file has.
        own: The file's fingerprints, by their names in the base model.
    """
    others = []
    for name, chosen in indices.items():
        layer, plain = layers[name], name.removeprefix(PEFT_PREFIX)
        exact, quantized = (own.get(f"{plain}.{kind}") for kind in (FINGERPRINT, FINGERPRINT_OF_QUANTIZED))
        saved = quantized if exact is None else exact
        if saved is None or layer.weight_device().type == "meta":
            continue
        tolerance = QUANTIZED if quantized is not None or isinstance(layer, QuantizedLinear) else ROUNDED
        if not same_columns(saved, layer.pretrained_columns(chosen), tolerance):
            others.append(plain)
    if others:
        warnings.warn(
            f"Adapter {adapter_name!r} was trained on other pretrained weights than this model's, in {len(others)} "
            f"layers: {first_few(others)}. Its outputs will not be those of "
            "training; load the base model that its configuration names.",
            stacklevel=2,
        )


def is_fresh(layers: Mapping[str, PacaLayer], adapter_name: str, config: PacaConfig) -> bool:
    """Whether the adapter of these layers waits for its file, untrained, so that nothing is lost with it."""
    deltas = [layer.paca_delta[adapter_name] for layer in layers.values()]
    untrained = not config.init_weights or all(delta.device.type == "meta" or not delta.any() for delta in deltas)
    return config._being_loaded and untrained
