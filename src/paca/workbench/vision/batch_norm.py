"""What batch normalisation does while a pretrained network is fine-tuned.

In training mode a layer of batch normalisation normalises by the batch's own statistics and moves its running ones
toward them. Small batches make both noisy, and an adapter cannot carry what has moved inside the base model. Frozen,
it is one multiplication and one addition per channel, with nothing to train and nothing of its input to keep for
backward.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paca.errors import PacaError, first_few

# Forwards that normalise and then, in timm's, drop and activate. By name: timm need not be imported to know its own.
_PLAIN = ("torch.nn.modules.batchnorm._BatchNorm", "torch.nn.modules.batchnorm.SyncBatchNorm")
_ACTIVATED = ("timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct")


def frozen_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Normalise by fixed statistics: `Y = X · γ/√(σ²+ε) + (β − μ·γ/√(σ²+ε))`.

    Computed in the statistics' precision and rounded once, to the input's. A gradient flows to `X` only, and nothing
    of `X`'s size is kept for it.

    Args:
        x: `X`, shape `(n, channels, …)`.
        weight: `γ`, shape `(channels,)`.
        bias: `β`, shape `(channels,)`.
        mean: `μ`, shape `(channels,)`.
        var: `σ²`, shape `(channels,)`.
        eps: `ε`.

    Returns:
        Shape and dtype of `x`.
    """
    per_channel = (1, -1, *(1,) * (x.dim() - 2))
    scale = weight * torch.rsqrt(var + eps)
    shift = bias - mean * scale
    return torch.addcmul(shift.view(per_channel), x, scale.view(per_channel)).to(x.dtype)


class FrozenBatchNorm(nn.Module):
    """A layer of batch normalisation whose statistics, scale and shift are buffers, under their old names.

    Args:
        base: The layer that it takes the place of; timm's kind drops and activates afterwards.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, base: Any) -> None:
        super().__init__()
        ones = torch.ones_like(base.running_var)
        self.register_buffer("weight", ones if base.weight is None else base.weight.detach())
        self.register_buffer("bias", ones - 1 if base.bias is None else base.bias.detach())
        self.register_buffer("running_mean", base.running_mean)
        self.register_buffer("running_var", base.running_var)
        self.register_buffer("num_batches_tracked", base.num_batches_tracked)
        self.eps = base.eps
        activated = _forward_name(base) in _ACTIVATED
        self.drop = base.drop if activated else nn.Identity()
        self.act = base.act if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, drop and activate `x`, shape `(n, channels, …)`."""
        normalised = frozen_batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)
        return self.act(self.drop(normalised))


def batch_norm_names(model: nn.Module) -> list[str]:
    """Full names of the layers of batch normalisation that are not frozen, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def freeze_batch_norm(model: Any) -> Any:
    """Fix all layers of batch normalisation to their pretrained statistics, scale and shift, in place.

    The state dict keeps its entries. A PacaError if a layer keeps no statistics, or has a forward that is unknown
    here.
    """
    layers = {name: model.get_submodule(name) for name in batch_norm_names(model)}
    unknown = [
        name
        for name, layer in layers.items()
        if _forward_name(layer) not in (*_PLAIN, *_ACTIVATED) or layer.running_mean is None
    ]
    if unknown:
        raise PacaError(
            f"images.batch_norm = 'frozen': {first_few(unknown, 3)} "
            f"({type(layers[unknown[0]]).__name__}) can't be frozen; set images.batch_norm=train."
        )
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, FrozenBatchNorm(layer))
    return model


def _forward_name(layer: Any) -> str:
    """The class that a layer's forward comes from, by its full name."""
    forward = type(layer).forward
    return f"{forward.__module__}.{forward.__qualname__.removesuffix('.forward')}"
