"""What of an image classifier is noted before its export, and compared after."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paca.errors import PacaError
from paca.workbench.base import yaml
from paca.workbench.export.certificate import Reference, refer
from paca.workbench.training.run_folder import ADAPTER, RECIPE
from paca.workbench.vision.adapters import CLASSES, load_adapted_classifier, read_classes

_IMAGES = 4


@dataclass(frozen=True)
class ClassifierFacts:
    """What an image classifier says about itself.

    Args:
        classes: Their names, in the order of the outputs.
        parameters: Elements of all parameters.
    """

    classes: tuple[str, ...]
    parameters: int


def classifier_adapter(name: str) -> Path | None:
    """Find the adapter of an image classifier in a run's folder or an adapter's; None where there is none."""
    folder = Path(name).expanduser()
    return next((path for path in (folder, folder / ADAPTER) if (path / CLASSES).is_file()), None)


def load(adapter: Path, dtype: str | None) -> tuple[Any, Reference, str]:
    """Load an adapted classifier as its run did.

    Args:
        adapter: Its folder.
        dtype: The precision to hold the base model in; that of the run when None.

    Returns:
        The model, what was noted of it on images of noise, and the name of its base.

    Raises:
        PacaError: If it was trained on random weights: nobody can load that base again.
    """
    recipe = adapter.parent / RECIPE
    content: Any = yaml.parse(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    if content.get("images", {}).get("weights") == "random":
        raise PacaError(
            f"The adapter in {str(adapter)!r} was trained on random weights (images.weights: random), which are "
            "nowhere to be loaded from. Save such a base first, and name its folder as model.name in the recipe."
        )
    model = load_adapted_classifier(adapter, dtype or content.get("model", {}).get("dtype", "auto")).eval()
    size = read_classes(adapter)[1].size
    noise = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 3, size, size, generator=noise).to(model.dtype) for _ in range(_IMAGES)]
    return model, refer(model, facts(model), images), model.peft_config["default"].base_model_name_or_path


def facts(model: Any) -> ClassifierFacts:
    """Read what a classifier, adapted or plain, says about itself."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = base.config.id2label
    adapters = (".paca_", ".lora_", ".original_module.")
    sizes = {name: parameter.numel() for name, parameter in base.named_parameters()}
    return ClassifierFacts(
        classes=tuple(names[label] for label in sorted(names)),
        parameters=sum(size for name, size in sizes.items() if not any(part in name for part in adapters)),
    )
