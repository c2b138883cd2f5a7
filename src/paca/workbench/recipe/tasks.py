"""The tasks that a recipe can have, and what checks the `training` keys of each."""

import pkgutil
from collections.abc import Mapping
from typing import Any

TEXT = "text"
PREFERENCE = "preference"
IMAGES = "image-classification"
# Named, not imported: each brings its libraries along, and a run needs those of one task.
TRAINING_PROBLEMS = {
    TEXT: "paca.workbench.recipe.text_arguments:training_problems",
    PREFERENCE: "paca.workbench.recipe.preference_arguments:preference_training_problems",
    IMAGES: "paca.workbench.vision.arguments:image_training_problems",
}


def training_problems(task: str, training: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a recipe's `training` keys, one message per problem."""
    problems: list[str] = pkgutil.resolve_name(TRAINING_PROBLEMS[task])(training)
    return problems
