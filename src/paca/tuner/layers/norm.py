"""PaCA on normalisation layers: the weight of a norm, `(n,)`, is one connection, and is trained whole.

    Y = (w₀ + s·Δ) ⊙ X̂ (+ b)        ∇Δ = s · Σ ∇Y ⊙ X̂        X̂  what the layer makes of its input before w

There is a class of norms in nearly every model of transformers, so none is computed here: the layer's own forward runs
over another weight. Autograd keeps `X̂` for it; a norm that `paca.lean` has changed computes that again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...method.columns.lease import Lease
from ...method.columns.norm import NormColumns
from ...method.columns.update import ColumnUpdate
from .base import PacaLayer
from .hooks import call_over

_PYTORCHS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)  # subclasses have other names, such as timm's LayerNorm2d
_BY_STATISTICS = nn.modules.batchnorm._NormBase  # of a batch, or running ones: not of their input alone


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises its input and multiplies with a weight of one value per channel."""
    weight = module._parameters.get("weight")
    return (
        (isinstance(module, _PYTORCHS) or type(module).__name__.endswith("Norm"))
        and not isinstance(module, _BY_STATISTICS)
        and weight is not None
        and weight.dim() == 1
        and not module._modules
    )


class Norm(PacaLayer):
    """A norm whose weight is trained; its one connection is the whole weight."""

    connection_dim = 0
    delta_dim = 0
    weight_dims = (1,)
    converts_to_lora = False
    trained_whole = True

    @classmethod
    def connections(cls, base: Any) -> int:
        return 1

    def _features(self) -> tuple[int, int]:
        return 1, len(self.base_layer.weight)

    def _new_columns(self) -> Any:
        return NormColumns()

    def _delta_shape(self, r: int) -> tuple[int, ...]:
        return r, self.out_features

    def compute(self, updates: tuple[ColumnUpdate, ...], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's forward over `w₀ + Σ s·Δ`, differentiable in `Δ`."""
        base = self.base_layer
        if self.merged_adapters or not updates:
            return base(x, *args, **kwargs)
        weight = self.columns.trained(self.base_weight, updates)
        if torch.compiler.is_compiling():
            return torch.func.functional_call(base, {"weight": weight}, (x, *args), kwargs)
        return call_over(base, "weight", weight, x, *args, **kwargs)

    def lend_for_call(self, lease: Lease) -> Lease | None:
        """Have the trained weight in place of the pretrained one for a call without gradients."""
        if torch.is_grad_enabled():
            self.__dict__["_for_call"] = None
            return None
        return super().lend_for_call(lease)

    def _additive(self, x: Tensor, update: ColumnUpdate) -> Tensor:
        """What an update adds to the base layer's output, which is affine in the weight."""
        adapted, pretrained = self.compute((update,), x), self.compute((), x)
        return adapted - pretrained

    def _dense(self, indices: Tensor, update: Tensor) -> Tensor:
        return update.sum(0)

    def __getattr__(self, name: str) -> Any:
        """What others ask a norm of, such as `eps` or `normalized_shape`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(self._modules["base_layer"], name)
