"""Names of layers in a recipe that its model does not have, to be told beside the recipe's own problems."""

from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.methods.registry import method_config
from paca.workbench.methods.section import MethodSection
from paca.workbench.methods.targets import target_problems
from paca.workbench.models.load import empty_model
from paca.workbench.models.section import ModelSection
from paca.workbench.recipe.tasks import IMAGES, TRAINING_PROBLEMS


def layer_problems(task: str, model: ModelSection, method: MethodSection) -> list[str]:
    """Compare the names with those of a model without weights, of a configuration on this machine.

    Nothing is said where it can't be made: what stands against it is told when the model is loaded.
    """
    if task not in TRAINING_PROBLEMS or model.adapter is not None:  # an adapter's own names fitted its base
        return []
    try:
        base, config = _classifier(model, method) if task == IMAGES else _language_model(model, method)
    except Exception:  # any library may raise anything over a configuration
        return []
    try:
        return target_problems(base, config)
    except PacaError as error:
        return [f"method.target_modules: {error}"]


def _language_model(model: ModelSection, method: MethodSection) -> tuple[Any, Any]:
    return empty_model(model.name, model.config), method_config(method.name, method.config)


def _classifier(model: ModelSection, method: MethodSection) -> tuple[Any, Any]:
    import torch

    from paca.workbench.vision.arguments import image_method_config
    from paca.workbench.vision.models import EMBEDDED, TIMM, load_classifier

    if not (model.name in EMBEDDED or model.name.startswith(TIMM) or Path(model.name).exists()):
        raise PacaError("The Hub is not asked.")
    with torch.device("meta"):
        base = load_classifier(model.name, ["one", "another"], weights="random")
    return base, image_method_config(method.name, method.config, [])
