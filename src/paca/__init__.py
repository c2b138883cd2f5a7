"""PaCA: fine-tune a few input columns of pretrained weights, in place of adapters beside them.

`import paca` makes PEFT know the method; from then on `peft.get_peft_model(model, paca.PacaConfig(...))` and all that
PEFT offers work with it. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import PacaError
from .tuner.import_hook import after_import

if TYPE_CHECKING:
    from .tuner.config import PacaConfig
    from .tuner.layers import PacaLayer, sync
    from .tuner.model import PacaModel
    from .tuner.reselect import ReselectCallback, reselect
    from .tuner.saving import full_adapter_state_dict
    from .tuner.select_connections import select_connections
    from .tuner.selection import LayerFacts, register_selection

__version__ = "0.1.0"
__all__ = [
    "LayerFacts",
    "PacaConfig",
    "PacaError",
    "PacaLayer",
    "PacaModel",
    "ReselectCallback",
    "__version__",
    "full_adapter_state_dict",
    "register_selection",
    "reselect",
    "select_connections",
    "sync",
]

_HOMES = {
    "LayerFacts": "tuner.selection",
    "ReselectCallback": "tuner.reselect",
    "PacaConfig": "tuner.config",
    "PacaLayer": "tuner.layers",
    "PacaModel": "tuner.model",
    "full_adapter_state_dict": "tuner.saving",
    "register_selection": "tuner.selection",
    "reselect": "tuner.reselect",
    "select_connections": "tuner.select_connections",
    "sync": "tuner.layers",
}


def _register() -> None:
    from .tuner.registration import register

    register()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import peft  # noqa: F401  (registers the method, through the hook below)

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


after_import("peft", _register)
