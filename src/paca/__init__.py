"""PaCA: fine-tune a few input columns of pretrained weights, in place of adapters beside them.

`import paca` makes PEFT know the method; from then on `peft.get_peft_model(model, paca.PacaConfig(...))` and all that
PEFT offers work with it. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DISTRIBUTION, PacaError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from .forwards.apply import LeanReport, lean
    from .tuner.config import PacaConfig
    from .tuner.layers import PacaLayer
    from .tuner.model import PacaModel
    from .tuner.reselect import ReselectCallback, reselect
    from .tuner.saving import check_base_model, full_adapter_state_dict
    from .tuner.select_connections import select_connections
    from .tuner.selection import LayerFacts, register_selection

__version__ = "0.1.0"
__all__ = [
    "LayerFacts",
    "LeanReport",
    "PacaConfig",
    "PacaError",
    "PacaLayer",
    "PacaModel",
    "ReselectCallback",
    "__version__",
    "check_base_model",
    "full_adapter_state_dict",
    "lean",
    "register_selection",
    "reselect",
    "select_connections",
]

_HOMES = {
    "LayerFacts": "tuner.selection",
    "LeanReport": "forwards.apply",
    "PacaConfig": "tuner.config",
    "PacaLayer": "tuner.layers",
    "PacaModel": "tuner.model",
    "ReselectCallback": "tuner.reselect",
    "check_base_model": "tuner.saving",
    "full_adapter_state_dict": "tuner.saving",
    "lean": "forwards.apply",
    "register_selection": "tuner.selection",
    "reselect": "tuner.reselect",
    "select_connections": "tuner.select_connections",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def _register() -> None:
    from .tuner.registration import register

    register()


class _RegisterWithPeft:
    """Registers the method as soon as PEFT has been imported: to import PEFT here would take seconds."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            # Not earlier: many only look whether PEFT is there, and never execute what they found.
            with suppress(ValueError):  # another import got here first
                sys.meta_path.remove(self)
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _warn_of_namesake() -> None:
    """Warn where another project's distribution `paca`, a tool for brokers, has put its files into this folder."""
    package = Path(__file__).parent
    if any(package.parent.glob("paca-*.dist-info")):
        warnings.warn(
            f"Another project's distribution 'paca' is installed in {package.parent}, into the same folder as "
            f"{DISTRIBUTION}'s files; whichever comes last replaces the other's, the command `paca` among them. Type: "
            f"pip uninstall -y paca {DISTRIBUTION} && pip install {DISTRIBUTION}",
            stacklevel=3,
        )


_warn_of_namesake()
if "peft" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterWithPeft())
