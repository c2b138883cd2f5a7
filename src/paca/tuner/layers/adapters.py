"""The adapters of a layer: adding and deleting them, and which connections they train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import PacaError
from ...method.columns.retired import move
from ..selection import random_connections
from .writing import WrittenLayer


class AdapterLayer(WrittenLayer):
    """A layer that adapters can be added to."""

    def update_layer(
        self, adapter_name: str, r: int, paca_alpha: float, seed: int | None = None, init_weights: bool = True
    ) -> None:
        """Add an adapter, with connections of its own.

        Args:
            adapter_name: Its name.
            r: How many connections it trains, at most `in_features`.
            paca_alpha: Its updates are scaled by `paca_alpha / r`.
            seed: Seed of the random selection; None draws from torch's global generator.
            init_weights: Start from zero updates, that is, from the pretrained model. False starts from random ones,
                for tests.

        Raises:
            PacaError: If `r` is not in `1 … in_features`.
        """
        if not 0 < r <= self.in_features:
            raise PacaError(f"r={r} does not fit a layer with {self.in_features} connections: pass 1 to that many.")
        self.columns.release()
        self.r[adapter_name] = r
        self.paca_alpha[adapter_name] = paca_alpha
        self.scaling[adapter_name] = paca_alpha / r
        self.paca_indices[adapter_name] = random_connections(self.in_features, r, seed)
        self.paca_delta[adapter_name] = nn.Parameter(torch.zeros(self._delta_shape(r), dtype=self._delta_dtype()))
        if not init_weights:
            nn.init.normal_(self.paca_delta[adapter_name], std=0.1)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's, less its cast: a loaded update keeps the precision of its file, and its `requires_grad`."""
        delta = self.paca_delta.get(adapter_name)
        device = self.weight_device() if device is None else device
        if delta is None or delta.device in (device, torch.device("meta")):
            return
        self.paca_delta[adapter_name] = nn.Parameter(delta.detach().to(device), requires_grad=delta.requires_grad)
        self.paca_indices[adapter_name] = self.paca_indices[adapter_name].to(device)

    def delete_adapter(self, adapter_name: str) -> None:
        self._adopt_weight()
        if not self.merged_adapters:
            self.columns.release()
        self._remerge = [name for name in self._remerge if name != adapter_name]
        super().delete_adapter(adapter_name)
        self._follow_change()

    def set_connections(self, adapter_name: str, indices: Tensor) -> None:
        """Train other connections from now on; the updates stay what they are.

        Args:
            adapter_name: The adapter.
            indices: Ascending, shape `(r,)`.
        """
        self.columns.release()
        self.paca_indices[adapter_name] = indices.to(self.paca_indices[adapter_name].device)
        self._follow_change()

    def move_connections(self, adapter_name: str, indices: Tensor) -> None:
        """Train other connections from now on; those trained so far stay in the weight as they are.

        Args:
            adapter_name: The adapter.
            indices: Ascending, shape `(r,)`.
        """
        self.columns.take_out()
        delta, old = self.paca_delta[adapter_name], self.paca_indices[adapter_name]
        new = indices.to(old.device)
        values, self.retired[adapter_name] = move(
            delta.detach(), old, new, self.retired.get(adapter_name), self.delta_dim
        )
        with torch.no_grad():
            delta.copy_(values)
        self.paca_indices[adapter_name] = new
        self.columns.invalidate()
        self._follow_change()

    def visited(self, adapter_name: str) -> Tensor:
        """The connections visited in the current sweep, shape `(n,)`."""
        retired = self.retired.get(adapter_name)
        return self.paca_indices[adapter_name] if retired is None else retired.visited

    def whole_update(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """All connections that an adapter has changed, and their updates.

        Args:
            adapter_name: The adapter.

        Returns:
            Indices, ascending, shape `(n,)`, and updates of the shape that `paca_delta` has at rank `n`,
            differentiable in it.
        """
        indices, delta = self.paca_indices[adapter_name], self.paca_delta[adapter_name]
        retired = self.retired.get(adapter_name)
        return (indices, delta) if retired is None else retired.joined(indices, delta, self.delta_dim)

    def trained_from(self, adapter_name: str) -> tuple[Tensor, bool]:
        """The pretrained columns that an adapter's updates are added to.

        Args:
            adapter_name: The adapter.

        Returns:
            The columns, connections first, and whether a quantization has rounded them.
        """
        return self.columns.pretrained_columns(self.whole_update(adapter_name)[0]), False
