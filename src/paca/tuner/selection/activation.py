"""Selection by the size of a layer's input channels on calibration batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .facts import LayerFacts
from .weight import column_energies


class MeanSquares:
    """The mean square of each input channel over all tokens seen, `1/n Σₜ X[t, j]²`, per layer."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def add(self, name: str, x: Tensor) -> None:
        """Add a batch's input of the layer `name`, shape `(..., in)`."""
        tokens = x.detach().reshape(-1, x.shape[-1])
        sums = tokens.float().square().sum(0).cpu().double()
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        self._tokens[name] = self._tokens.get(name, 0) + len(tokens)

    def result(self) -> dict[str, Tensor]:
        """The means by layer, shape `(in,)` each."""
        return {name: total / self._tokens[name] for name, total in self._sums.items()}

    @contextmanager
    def watching(self, layers: dict[str, Any]) -> Iterator[None]:
        """Add every input of the layers, by their names, inside a `with` block, where no gradients are made."""
        with ExitStack() as hooks, torch.no_grad():
            for name, layer in layers.items():
                hooks.enter_context(layer.register_forward_pre_hook(partial(self._count, name)))
            yield

    def _count(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.add(name, inputs[0])


def statistic_scores(facts: LayerFacts) -> Tensor:
    """The measured statistic itself: mean squares of the input channels, or squared gradient norms; shape `(in,)`."""
    if facts.statistic is None:
        raise ValueError(f"{facts.name}: nothing was measured.")
    return facts.statistic


def weight_activation_scores(facts: LayerFacts) -> Tensor:
    """`‖W[:, j]‖² · mean square of channel j`, the energy that a connection brings to the output; shape `(in,)`."""
    return column_energies(facts.columns()) * statistic_scores(facts)
