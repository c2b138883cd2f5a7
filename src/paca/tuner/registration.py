"""Registers the method `PACA` with PEFT. No other file knows PEFT's versions.

PEFT's registry is closed: a method must be a member of the enum `PeftType`. PEFT 0.21 has no member `PACA`, 0.22 has
one with its own implementation, whose adapter files this package reads and writes.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


def register() -> None:
    """Register `PacaConfig` and `PacaModel` with PEFT as `PACA`; calling it again does nothing."""
    import peft
    from peft import mapping
    from peft.utils.peft_types import PeftType, register_peft_method

    add_member(PeftType, "PACA")
    # What follows imports PeftType.PACA.
    from .config import PacaConfig
    from .model import PacaModel

    peft_type = PeftType.PACA
    known = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if known is PacaConfig:
        return
    if known is not None:
        _take_over(mapping, peft_type, known)
    register_peft_method(name="paca", config_cls=PacaConfig, model_cls=PacaModel, prefix=PacaModel.prefix)
    for module in (peft, peft.tuners):
        module.PacaConfig, module.PacaModel = PacaConfig, PacaModel  # type: ignore[attr-defined]


def add_member(enum: Any, name: str) -> None:
    """Add a member, whose value is its name, to a string enum such as `PeftType`, unless it is there."""
    if name in enum.__members__:
        return
    member = str.__new__(enum, name)
    member._name_ = member._value_ = name
    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[name] = member
    type.__setattr__(enum, name, member)


def _take_over(mapping: Any, peft_type: Any, known: type) -> None:
    """Remove PEFT's own PaCA from its tables, and say so."""
    for table in (
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        mapping.PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    ):
        table.pop(peft_type, None)
    logger.warning(
        "paca takes the method PACA over from PEFT's own %s.%s; adapter files stay interchangeable.",
        *(known.__module__, known.__qualname__),
    )
