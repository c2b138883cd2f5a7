"""The methods that can be planned for: those of the paper by name, and whatever else PEFT knows."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import suggestion
from paca.workbench.methods.registry import known_methods
from paca.workbench.planning.setting import Setting
from paca.workbench.planning.shapes import CONVOLUTIONS

FULL = "full"


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        name: What is typed.
        peft: PEFT's name of it; None trains every parameter.
        fields: Fields of PEFT's configuration that make it what it is.
        packed: Whether base weights are in NF4.
    """

    name: str
    peft: str | None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    packed: bool = False


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("paca", "paca", {"random_seed": 0}),
        Method("lora", "lora"),
        Method("dora", "lora", {"use_dora": True}),
        Method("moslora", "moslora"),
        Method(FULL, None),
        Method("qpaca", "paca", {"random_seed": 0}, packed=True),
        Method("qlora", "lora", packed=True),
    )
}


def find_method(name: str) -> Method:
    """Find a method by name.

    Args:
        name: Of a method in `METHODS`, or PEFT's name of any other.

    Returns:
        It.

    Raises:
        PacaError: If there is none.
    """
    if name in METHODS:
        return METHODS[name]
    known = known_methods()
    if name in known:
        return Method(name, name)
    raise PacaError(
        f"There is no method {name!r}{suggestion(name, [*METHODS, *known])}. Known: {', '.join(METHODS)}, and PEFT's "
        "other methods by their names."
    )


def config_fields(method: Method, setting: Setting) -> dict[str, Any]:
    """Make the fields of PEFT's configuration.

    Args:
        method: With a name of PEFT's.
        setting: How it is trained; its own fields, where it has them, are all there is.

    Returns:
        The fields.
    """
    if setting.fields is not None:
        return dict(setting.fields)
    known = {spec.name for spec in dataclasses.fields(known_methods()[str(method.peft)])}
    wanted: dict[str, Any] = {"r": setting.rank, "target_modules": _targets(setting)}
    if setting.targets == CONVOLUTIONS:  # the first of them have fewer channels than most ranks
        wanted["clamp_rank"] = True
    return {**{name: value for name, value in wanted.items() if name in known}, **method.fields}


def _targets(setting: Setting) -> Any:
    return setting.targets if isinstance(setting.targets, str) else list(setting.targets)
