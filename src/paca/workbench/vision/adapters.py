"""What lies beside an adapter of an image classifier, and how it is loaded again and merged."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.files import write_json
from paca.workbench.vision.models import load_classifier
from paca.workbench.vision.pixels import PixelFormat

CLASSES = "classes.json"


def save_classes(folder: Path, classes: Sequence[str], wanted: PixelFormat) -> None:
    """Save beside an adapter what its base model has to be loaded with: classes, and format of the images."""
    write_json(folder / CLASSES, {"classes": list(classes), "pixels": asdict(wanted)})


def read_classes(adapter: Path) -> tuple[tuple[str, ...], PixelFormat]:
    """Read what `save_classes` wrote; a PacaError if it is not there."""
    if not (adapter / CLASSES).is_file():
        raise PacaError(f"There is no adapter of an image classifier in {str(adapter)!r}: it holds no {CLASSES}.")
    content = json.loads((adapter / CLASSES).read_text(encoding="utf-8"))
    pixels = content["pixels"]
    return tuple(content["classes"]), PixelFormat(pixels["size"], tuple(pixels["mean"]), tuple(pixels["std"]))


def load_adapted_classifier(adapter: str | Path, dtype: str = "auto", weights: str = "pretrained") -> Any:
    """Load an adapter on its base model.

    Args:
        adapter: Its folder.
        dtype: The precision to load the base model in.
        weights: `random` if it was trained on an architecture without a checkpoint; set the seed that the run had.

    Returns:
        A `PeftModel`.

    Raises:
        PacaError: If there is no adapter, or its base model is not found.
    """
    from peft import PeftConfig, PeftModel

    from paca.workbench.methods.registry import register_methods

    register_methods()
    classes, _ = read_classes(Path(adapter))
    name = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    return PeftModel.from_pretrained(load_classifier(name, classes, dtype, weights), str(adapter))
