"""What an adapter's connections ask of its layers: shared gathers, data to be chosen by, columns from a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

from ..errors import PacaError
from ..method.columns.shared_gather import SharedGather
from .column_source import ColumnSource
from .config import PacaConfig
from .layers.base import PacaLayer
from .layers.quantized import QuantizedLinear
from .selection.groups import Groups, group_layers, same_input_groups


def share_gathers(layers: Mapping[str, PacaLayer], adapter_name: str, aligned: bool | Groups) -> None:
    """Let layers that read the same input gather its selected channels once; see `PacaConfig.aligned`."""
    for group in group_layers(layers, same_input_groups(aligned)):
        gather = SharedGather()
        for name in group if len(group) > 1 else ():
            layers[name].gathers[adapter_name] = gather


def require_selected(
    layers: Collection[PacaLayer], waiting: Collection[str], configs: Mapping[str, PacaConfig]
) -> None:
    """Refuse to train active adapters whose connections wait for data, unless the layers are switched off."""
    if waiting and not all(layer.disable_adapters for layer in layers):
        name = min(waiting)
        raise PacaError(
            f"selection={configs[name].selection!r} needs data: call paca.select_connections(model, dataloader) "
            f"before training adapter {name!r}."
        )


def read_columns(
    layers: Mapping[str, PacaLayer], adapter_name: str, config: PacaConfig, prefix: str, only_check: bool
) -> None:
    """Give quantized layers the unquantized columns of the checkpoint that `column_source` names.

    Args:
        layers: The adapter's layers by name.
        adapter_name: The adapter.
        config: Its configuration. An adapter that is being loaded brings its columns along.
        prefix: The name under which the base model hangs in the whole one.
        only_check: Find out that all can be read, and keep what the layers have.
    """
    if config.column_source is None or config._being_loaded:
        return
    quantized = {name: layer for name, layer in layers.items() if isinstance(layer, QuantizedLinear)}
    if not quantized:
        warnings.warn(
            f"column_source={config.column_source!r} is ignored: no targeted layer is quantized, so the base "
            "weights hold the columns already.",
            stacklevel=2,
        )
        return
    source = ColumnSource(config.column_source, prefix)
    for name, layer in quantized.items():
        indices = layer.paca_indices[adapter_name]
        pretrained = layer.pretrained_columns(indices).t()
        columns = source.read(name, indices, layer.in_features, pretrained)
        if not only_check:
            layer.set_columns(adapter_name, columns)
