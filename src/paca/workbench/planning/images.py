"""Image classifiers: how they are built without memory, and what a batch for them is."""

from typing import Any

import torch
from torch import Tensor, nn

from paca.workbench.planning.setting import TrainingSetting


def build(config: Any, dtype: torch.dtype, device: str) -> Any:
    """Build an image classifier with random weights, or on `meta`; timm's networks have a config that wraps them."""
    from transformers import AutoModelForImageClassification

    with torch.device(device):
        model = AutoModelForImageClassification.from_config(config)
    model.name_or_path = getattr(config, "architecture", config.model_type)
    return model.to(dtype)


def batch(model: nn.Module, setting: TrainingSetting) -> dict[str, Tensor]:
    """Make a batch: `pixel_values`, shape `(batch, 3, pixels, pixels)`, and `labels`.

    The pixels are float32 under autocast and of the weights' dtype otherwise.
    """
    dtype = torch.float32 if setting.autocast else setting.dtype
    return {
        "pixel_values": torch.zeros(setting.batch, 3, setting.pixels, setting.pixels, dtype=dtype),
        "labels": torch.zeros(setting.batch, dtype=torch.long),
    }
