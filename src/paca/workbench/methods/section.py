"""The recipe's section `method`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MethodSection:
    """Which PEFT method, with the fields of its config.

    Args:
        name: `paca`, `lora`, or any other name that PEFT knows.
        config: The fields of that method's config; in YAML they stand next to `name`.
    """

    name: str = "paca"
    config: dict[str, Any] = field(default_factory=dict)
