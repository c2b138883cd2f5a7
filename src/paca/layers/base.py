"""`PacaLayer`: what every adapted layer does, whatever kind of layer it wraps.

A layer shows its active adapters in the base weight (`columns.py`) and runs the base layer's own forward over them.
Whoever looks at the base weight from outside (a state dict, a copy, a pickle, a layer being unloaded) finds the
pretrained values. A kind of layer adds the few facts in which it differs; see `linear.py`.
"""

from __future__ import annotations

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
