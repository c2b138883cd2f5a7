"""The tasks that a recipe can have, and what each checks of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT = "text"


IMAGES = "image-classification"


def _text_problems(training: Mapping[str, Any]) -> list[str]:
    from paca.workbench.recipe.text_arguments import training_problems

    return training_problems(training)


def _image_problems(training: Mapping[str, Any]) -> list[str]:
    from paca.workbench.vision.arguments import image_training_problems

    return image_training_problems(training)
