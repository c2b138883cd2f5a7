"""Finds a model's configuration: a built-in shape, a `config.json`, a folder, or a name on the Hub."""

import importlib.util
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import suggestion
from paca.workbench.planning.shapes import ALL_LINEAR, CONVOLUTIONS, SHAPES, find_shape

TIMM = "timm_wrapper"


def find_config(name: str, trust_remote_code: bool = False) -> Any:
    """Find a model's configuration; no weights are read.

    Args:
        name: A name in `SHAPES`, the path of a `config.json` or of its folder, or a name on the Hub.
        trust_remote_code: Run the code that a configuration may bring along.

    Returns:
        transformers' configuration.

    Raises:
        PacaError: If there is none, or if its code would have to be trusted.
    """
    from transformers import AutoConfig

    shape = find_shape(name)
    if shape is not None:
        if shape.model_type == TIMM and importlib.util.find_spec("timm") is None:
            raise PacaError(f"The shape {shape.name!r} needs the package 'timm': pip install 'paca[vision]'")
        return AutoConfig.for_model(shape.model_type, **dict(shape.config))
    try:
        return AutoConfig.from_pretrained(
            Path(name) if Path(name).exists() else name, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise PacaError(
                f"The configuration of {name!r} brings code of its own. Read that code, and pass --trust-remote-code "
                "to run it."
            ) from error
        raise PacaError(
            f"The model {name!r} is not a built-in shape ({', '.join(SHAPES)}){suggestion(name, SHAPES)}, and no "
            f"configuration was found in a file, in a folder or on the Hub: {error}"
        ) from error


def is_image_config(config: Any) -> bool:
    """Whether a configuration is one of an image classifier.

    Args:
        config: transformers' configuration.

    Returns:
        Whether images, rather than tokens, go in.
    """
    return hasattr(config, "image_size") or config.model_type == TIMM


def default_targets(config: Any) -> str:
    """Say what is adapted unless something else is asked for.

    Args:
        config: transformers' configuration.

    Returns:
        PEFT's `target_modules`.
    """
    return CONVOLUTIONS if config.model_type == TIMM else ALL_LINEAR


def image_size(config: Any) -> int:
    """Say how large the images are that a classifier was made for.

    Args:
        config: transformers' configuration.

    Returns:
        Height and width in pixels.
    """
    if config.model_type == TIMM:
        import timm

        known = timm.get_pretrained_cfg(config.architecture)
        return 224 if known is None else int(known.input_size[-1])
    return int(config.image_size)
