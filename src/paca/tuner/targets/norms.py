"""Which layers `train_norms` adds to those that are adapted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...errors import PacaError
from ..config import PacaConfig
from ..layers.norm import is_norm


def norm_names(modules: Mapping[str, nn.Module], config: PacaConfig) -> set[str]:
    """The norms of a model.

    Args:
        modules: All modules of the model, by name.
        config: Says which modules are trained whole in another way.

    Returns:
        Their names.

    Raises:
        PacaError: If there is none that can be trained.
    """
    saved = tuple(config.modules_to_save or ())
    found = {name for name, module in modules.items() if is_norm(module) and not (saved and name.endswith(saved))}
    if not found:
        others = {type(module).__name__ for module in modules.values() if "norm" in type(module).__name__.lower()}
        raise PacaError(
            "train_norms=True: the model has no norm with a weight of its own that could be trained"
            + (f"; its {', '.join(sorted(others))} normalise by a batch, or have none." if others else ".")
            + " Leave it out."
        )
    return found
