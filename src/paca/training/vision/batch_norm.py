"""What batch normalisation does while a pretrained network is fine-tuned.

In training mode a layer of batch normalisation normalises by the batch's own statistics and moves its running ones
toward them. Small batches make both noisy, and an adapter cannot carry what has moved inside the base model. Frozen,
it is one multiplication and one addition per channel, `Y = X · γ/√(σ²+ε) + (β − μ·γ/√(σ²+ε))`, with nothing to train
and nothing of `X` to keep for backward.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from paca.errors import PacaError


def batch_norm_names(model: nn.Module) -> list[str]:
    """Name the layers of batch normalisation.

    Args:
        model: Any model.

    Returns:
        Their full names, in the model's order.
    """
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def freeze_batch_norm(model: Any) -> Any:
    """Fix all layers of batch normalisation to their pretrained statistics, scale and shift.

    Args:
        model: A model, which is changed: its layers are replaced by timm's frozen ones.

    Returns:
        The model.

    Raises:
        PacaError: If it has batch normalisation over other than images, which cannot be frozen here.
    """
    if not batch_norm_names(model):
        return model
    from timm.layers import freeze_batch_norm_2d

    model = freeze_batch_norm_2d(model)
    left = batch_norm_names(model)
    if left:
        raise PacaError(
            f"images.batch_norm = 'frozen': {', '.join(left[:3])}{', …' if len(left) > 3 else ''} of this model "
            "normalise other than images and can't be frozen; set images.batch_norm=train."
        )
    return model
