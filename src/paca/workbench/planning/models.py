"""Finds a model's configuration: a built-in shape, a `config.json`, a folder, or a name on the Hub."""

import importlib.util
from pathlib import Path
from typing import Any

from paca.errors import PacaError, to_install
from paca.workbench.base.messages import one_line, suggestion
from paca.workbench.models.embedded import hub_place
from paca.workbench.planning.families import TIMM
from paca.workbench.planning.shapes import ALL_LINEAR, CONVOLUTIONS, SHAPES, find_shape


def find_config(name: str, trust_remote_code: bool = False) -> Any:
    """Find a model's transformers configuration; no weights are read.

    It is named by a key of `SHAPES`, the path of a `config.json` or of its folder, or a name on the Hub. A PacaError
    if there is none, or if its own code would have to be trusted.
    """
    from transformers import AutoConfig

    shape = find_shape(name)
    if shape is not None:
        if shape.model_type == TIMM and importlib.util.find_spec("timm") is None:
            raise PacaError(f"The shape {shape.name!r} needs the package 'timm': {to_install('vision')}")
        return AutoConfig.for_model(shape.model_type, **dict(shape.config))
    try:
        return AutoConfig.from_pretrained(
            Path(name) if Path(name).exists() else name, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # a configuration's own checks raise what they like
        if "trust_remote_code" in str(error):
            raise PacaError(
                f"The configuration of {name!r} brings code of its own. Read that code, and pass --trust-remote-code "
                "to run it."
            ) from error
        if Path(name).exists():
            raise PacaError(f"The configuration in {name!r} can't be read: {one_line(error)}") from error
        raise PacaError(
            f"The model {name!r} is not a built-in shape ({', '.join(SHAPES)}){suggestion(name, SHAPES)}, and no "
            f"configuration was found in a file, in a folder or in {hub_place()}: {one_line(error)}"
        ) from error


def default_targets(config: Any) -> str:
    """PEFT's `target_modules` unless something else is asked for."""
    return CONVOLUTIONS if config.model_type == TIMM else ALL_LINEAR


def image_size(config: Any) -> int:
    """Height and width in pixels of the images that a classifier was made for."""
    if config.model_type == TIMM:
        import timm

        known = timm.get_pretrained_cfg(config.architecture)
        return 224 if known is None else int(known.input_size[-1])
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    return int(size if isinstance(size, int) else max(size))
