"""Puts a PEFT method onto an image classifier."""

from typing import Any

from paca.workbench.methods.registry import refusals_explained
from paca.workbench.methods.section import MethodSection
from paca.workbench.methods.targets import check_targets
from paca.workbench.vision.arguments import image_method_config
from paca.workbench.vision.batch_norm import batch_norm_names, freeze_batch_norm
from paca.workbench.vision.models import classifier_names


def with_method(model: Any, method: MethodSection, batch_norm: str, classes: int) -> Any:
    """Put a method onto a classifier, which is changed, and have its head trained whole.

    `batch_norm` is a key of `BATCH_NORM`. A PacaError if the method cannot be applied to the model.
    """
    from peft import get_peft_model

    if batch_norm == "frozen":
        model = freeze_batch_norm(model)
    named = method.config.get("modules_to_save")
    whole = [*(() if named else classifier_names(model, classes)), *batch_norm_names(model)]
    with refusals_explained(method.name, model.name_or_path):
        config = image_method_config(method.name, method.config, whole)
        check_targets(model, config)
        return get_peft_model(model, config)
