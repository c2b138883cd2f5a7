"""PaCA: fine-tune a few input columns of pretrained weights, in place of adapters beside them.

`import paca` makes PEFT know the method; from then on `peft.get_peft_model(model, paca.PacaConfig(...))` and all that
PEFT offers work with it. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._import_hook import after_import
from .errors import PacaError

if TYPE_CHECKING:
    from .config import PacaConfig
    from .layers import PacaLayer, sync
    from .model import PacaModel
    from .model_files import gathered_adapter
    from .moving import MovingConnections, reselect
    from .selection import LayerFacts, register_selection
    from .selection.data_driven import select_connections

__version__ = "0.1.0"
__all__ = [
    "LayerFacts",
    "MovingConnections",
    "PacaConfig",
    "PacaError",
    "PacaLayer",
    "PacaModel",
    "__version__",
    "gathered_adapter",
    "register_selection",
    "reselect",
    "select_connections",
    "sync",
]

_HOMES = {
    "LayerFacts": "selection",
    "MovingConnections": "moving",
    "PacaConfig": "config",
    "PacaLayer": "layers",
    "PacaModel": "model",
    "gathered_adapter": "model_files",
    "register_selection": "selection",
    "reselect": "moving",
    "select_connections": "selection.data_driven",
    "sync": "layers",
}


def _register() -> None:
    from .peft_plugin import register

    register()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import peft  # noqa: F401  (registers the method, through the hook below)

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


after_import("peft", _register)
