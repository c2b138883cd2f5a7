"""An adapter's folder: where it is, whether it is whole, and which base model it is of."""

import json
from pathlib import Path
from typing import Any

from paca.errors import PacaError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ADAPTER = "adapter"  # in a run's output folder


def adapter_folder(folder: Path) -> Path | None:
    """Find the adapter in its own folder or in a run's output folder; None if there is none."""
    return next((path for path in (folder, folder / ADAPTER) if (path / CONFIG).is_file()), None)


def read_config(adapter: Path) -> dict[str, Any]:
    """Read an adapter's configuration; a PacaError if that is damaged, or the weights are missing or are a pickle."""
    if not (adapter / WEIGHTS).is_file():
        pickles = sorted(path.name for path in adapter.glob("*.bin"))
        beside = f"; {pickles[0]} is a pickle, which can run code: save the adapter as safetensors" if pickles else ""
        raise PacaError(f"The adapter in {str(adapter)!r} holds no {WEIGHTS}{beside}.")
    try:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PacaError(f"{adapter / CONFIG} is not valid JSON: {error}. Copy or save the adapter again.") from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise PacaError(f"{adapter / CONFIG} does not name its base model as 'base_model_name_or_path': got {base!r}.")
    return dict(config)


def base_name(adapter: Path) -> str:
    """The name of the base model that an adapter was trained on."""
    return str(read_config(adapter)["base_model_name_or_path"])


def may_be_same_model(first: str, second: str) -> bool:
    """Whether two names may mean one model: a folder that was moved or downloaded keeps its last part.

    The case may differ: an embedded model has the name of its repository in lower case.
    """
    last, other = (Path(name).expanduser().resolve().name.casefold() for name in (first, second))
    return last == other
