"""The connections of a model's adapters: chosen by a strategy, shared by layers, read from a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..errors import PacaError
from ..method.columns.shared_gather import SharedGather
from .column_source import ColumnSource
from .layers.base import PacaLayer
from .layers.find import adapter_layers, paca_layers
from .layers.quantized import QuantizedLinear
from .select import is_plain_random, select_without_data
from .selection import find_strategy
from .selection.groups import group_layers, same_input_groups


class ConnectedModel(BaseTuner):
    """A model whose adapters train connections that somebody chooses."""

    selection_scores: dict[str, dict[str, Tensor]]  # of moving adapters whose strategy has seen data
    unselected: frozenset[str] = frozenset()  # adapters whose connections wait for data
    _layers: tuple[PacaLayer, ...]

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
        if config.column_source is None or config._being_loaded:
            return
        layers = {
            name: layer
            for name, layer in paca_layers(model).items()
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
        waits = adapter_name in self.unselected  # what is read then only shows that all can be
        for name, layer in layers.items():
            indices = layer.paca_indices[adapter_name]
            pretrained = layer.columns.pretrained_columns(indices).t()
            columns = source.read(name, indices, layer.in_features, pretrained)
            if not waits:
                layer.set_columns(adapter_name, columns)
