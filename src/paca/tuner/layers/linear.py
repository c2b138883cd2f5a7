"""PaCA on linear layers: `nn.Linear`, and transformers' `Conv1D` (GPT-2), which stores its weight as `(in, out)`."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D as TransposedLinear

from .base import PacaLayer


class Linear(PacaLayer):
    """`nn.Linear` with adapted columns; a connection is an input feature."""

    connection_dim = 1
    reads_gathered = True
    base_forward = nn.Linear.forward
    reads_features_last = True

    def _features(self) -> tuple[int, int]:
        return self.base_layer.in_features, self.base_layer.out_features

    def _matrix(self) -> Tensor:
        weight: Tensor = self._modules["base_layer"]._parameters["weight"]  # type: ignore[union-attr, assignment]
        return weight


class Conv1DLinear(PacaLayer):
    """transformers' `Conv1D`, a linear layer whose weight is `(in, out)`; a connection is an input feature."""

    connection_dim = 0
    base_forward = TransposedLinear.forward
    reads_features_last = True

    def _features(self) -> tuple[int, int]:
        connections, length = self.base_layer.weight.shape
        return connections, length

    def _matrix(self) -> Tensor:
        return self.columns.weight.t()
