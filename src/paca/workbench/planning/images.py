"""Image classifiers: how they are built without memory, and what a batch for them is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paca.workbench.planning.setting import Setting
from paca.workbench.recipe.recipe import DataSection, MethodSection, ModelSection, Recipe
from paca.workbench.vision.section import ImagesSection


def build(config: Any, dtype: torch.dtype, device: str) -> Any:
    """Build an image classifier with random weights, or none.

    Args:
        config: transformers' configuration; timm's networks have one that wraps them.
        dtype: Of the weights.
        device: `meta`, or a real one.

    Returns:
        The model.
    """
    from transformers import AutoModelForImageClassification

    with torch.device(device):
        model = AutoModelForImageClassification.from_config(config)
    model.name_or_path = getattr(config, "architecture", config.model_type)
    return model.to(dtype)


def with_method(model: Any, name: str, fields: Mapping[str, Any], batch_norm: str) -> Any:
    """Put a method on, as `paca finetune` does: the head is trained whole.

    Args:
        model: The classifier.
        name: PEFT's name of the method.
        fields: Of its configuration.
        batch_norm: `frozen` or `train`.

    Returns:
        A `PeftModel`.
    """
    from paca.workbench.training.images import with_method as put_on

    recipe = Recipe(
        ModelSection(model.name_or_path),
        DataSection(""),
        "",
        MethodSection(name, dict(fields)),
        images=ImagesSection(batch_norm=batch_norm),
    )
    return put_on(model, recipe, model.config.num_labels)


def batch(model: nn.Module, setting: Setting) -> dict[str, Tensor]:
    """Make a batch.

    Args:
        model: The classifier.
        setting: Says how many images there are, and how large they are.

    Returns:
        `pixel_values`, shape `(batch, 3, pixels, pixels)`, in float32 under autocast and in the weights' dtype
        otherwise; and `labels`.
    """
    dtype = torch.float32 if setting.autocast else setting.dtype
    return {
        "pixel_values": torch.zeros(setting.batch, 3, setting.pixels, setting.pixels, dtype=dtype),
        "labels": torch.zeros(setting.batch, dtype=torch.long),
    }
