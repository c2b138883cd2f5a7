"""The methods that can be planned for: those of the paper by name, and whatever else PEFT knows."""

from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import suggestion
from paca.workbench.methods.catalogue import FULL, METHODS, Method
from paca.workbench.methods.registry import known_methods
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.shapes import CONVOLUTIONS

PLANNED = {name: METHODS[name] for name in ("paca", "lora", "dora", "moslora", FULL, "qpaca", "qlora")}
QUANTIZED = {"paca": "qpaca", "lora": "qlora"}


def find_method(name: str) -> Method:
    """Find a method by a key of `PLANNED`, or PEFT's name of any other; a PacaError if there is none."""
    if name in PLANNED:
        return PLANNED[name]
    known = known_methods()
    if name in known:
        return Method(name, f"PEFT's {name}", name)
    raise PacaError(
        f"There is no method {name!r}{suggestion(name, [*PLANNED, *known]) or '.'} Known: {', '.join(PLANNED)}, and "
        "PEFT's other methods by their names."
    )


def config_fields(method: Method, setting: TrainingSetting) -> dict[str, Any]:
    """Make the fields of PEFT's configuration; those that a setting has itself are all there is."""
    if setting.fields is not None:
        return dict(setting.fields)
    targets = setting.targets if isinstance(setting.targets, str) else list(setting.targets)
    spent = {"r": setting.rank} if setting.budget is None else {"budget": setting.budget}
    wanted: dict[str, Any] = {**spent, "target_modules": targets, "random_seed": 0}
    # The first convolutions have fewer channels than most ranks; a budget minds them by itself.
    if setting.targets == CONVOLUTIONS and setting.budget is None:
        wanted["clamp_rank"] = True
    return method.config_fields(wanted)
