"""Finds a model's configuration: a built-in shape, a `config.json`, a folder, or a name on the Hub."""

from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.planning.shapes import SHAPES
from paca.training.schema import suggestion


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
    from transformers import AutoConfig, LlamaConfig

    if name in SHAPES:
        return LlamaConfig(**dict(SHAPES[name].config))
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
