"""`PacaLayer`: what every adapted layer does, whatever kind of layer it wraps.

A layer shows its active adapters in the base weight (`columns.py`) and runs the base layer's own forward over them.
Whoever looks at the base weight from outside (a state dict, a copy, a pickle, a layer being unloaded) finds the
pretrained values. A kind of layer adds the few facts in which it differs; see `linear.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .forward import ForwardLayer
from .merging import MergingLayer
from .outside import SeenLayer, follow_load
from .writing import LAYERS


class PacaLayer(ForwardLayer, MergingLayer, SeenLayer):
    """A base layer and the adapters that are shown in its weight.

    Per adapter: `paca_delta` `(out, r)`, trained, the update `Δ` of the selected columns; `paca_indices` `(r,)`,
    the selected connections, saved with the adapter.

    Args:
        base_layer: The layer to adapt; it stays in place as `base_layer`, with its weight.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.register_load_state_dict_post_hook(follow_load)
        LAYERS.add(self)

    @property
    def weight(self) -> Any:
        """The base weight as this layer multiplies with it: PyTorch's fused transformer layers read it themselves."""
        if not torch.compiler.is_compiling() and not self._waits_for_values():
            self.show_columns()
        return super().weight

    def parts(self, name: str) -> list[tuple[str, PacaLayer]]:
        """The adapted layers that an adapter on this one consists of.

        Args:
            name: This layer's name in the base model.

        Returns:
            The layers, each with the name of its weight's owner.
        """
        return [(name, self)]
