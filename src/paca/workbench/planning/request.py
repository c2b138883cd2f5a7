"""What `paca plan` was asked for: a model or a recipe, and how it is trained by each of several methods."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paca.errors import PacaError
from paca.workbench.planning.families import TIMM, find_family, is_image_config
from paca.workbench.planning.losses import find_loss
from paca.workbench.planning.methods import QUANTIZED, Method, find_method
from paca.workbench.planning.models import default_targets, find_config, image_size
from paca.workbench.planning.optimizers import find_optimizer
from paca.workbench.planning.recipes import recipe_setting
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.stored import stored_quantization
from paca.workbench.recipe.recipe import find_recipe, read_recipe, shipped_recipes

TEXT_METHODS = ("paca", "lora", "dora", "full")
CONVOLUTION_METHODS = ("paca", "full")  # PEFT's LoRA refuses grouped convolutions at most ranks
# Options that are fields of a setting.
TYPED = (
    *("batch", "pixels", "rank", "budget", "autocast", "checkpointing"),
    *("optimizer", "loss", "attention", "ranks", "lean"),
)


@dataclass(frozen=True)
class PlannedModel:
    """What is planned for.

    Args:
        name: As it was typed.
        config: The model's configuration.
        setting: How it is trained unless something else is asked for.
        methods: The methods to plan unless others are asked for.
    """

    name: str
    config: Any
    setting: TrainingSetting
    methods: tuple[str, ...]

    def title(self, setting: TrainingSetting) -> str:
        """Name the model, the batch, and whether forwards are lean."""
        lean = ", lean" if setting.lean else ""
        if is_image_config(self.config):
            return f"{self.name}, {setting.batch} × {setting.pixels} × {setting.pixels} pixels{lean}"
        return f"{self.name}, {setting.batch} × {setting.tokens} tokens{lean}"

    def warnings(self, setting: TrainingSetting) -> list[str]:
        """Say what is odd about a setting."""
        family = find_family(self.config)
        found = [family.note] if family.note else []
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if not family.images and positions is not None and setting.tokens > positions:
            found.append(f"{setting.tokens} tokens are more than the model's {positions} positions")
        stored = stored_quantization(self.config)
        if stored is not None and setting.dequantized:
            dtype = str(setting.dtype).removeprefix("torch.")
            found.append(f"the weights are stored quantized ({stored.name}), and planned as plain ones in {dtype}")
        return found


def planned_model(name: str, trust_remote_code: bool = False) -> PlannedModel:
    """Find what is planned for: a recipe, by its file or the name of one that ships, or what `find_config` takes."""
    if name.endswith((".yaml", ".yml")) or name in shipped_recipes():
        recipe = read_recipe(find_recipe(name), output_dir="unused")
        config = find_config(recipe.model.name, trust_remote_code)
        setting = recipe_setting(recipe, config)
        return PlannedModel(Path(name).name, config, setting, (setting.method,))
    config = find_config(name, trust_remote_code)
    setting = TrainingSetting(targets=default_targets(config), block=512)
    if is_image_config(config):
        setting = replace(setting, pixels=image_size(config), dtype=torch.float32, autocast=True)
    stored = stored_quantization(config)
    methods = tuple(QUANTIZED.values()) if stored is not None and stored.four_bit else TEXT_METHODS
    return PlannedModel(name, config, setting, CONVOLUTION_METHODS if config.model_type == TIMM else methods)


def settings_of(planned: PlannedModel, typed: Mapping[str, Any]) -> list[TrainingSetting]:
    """Make one setting per method, in order, from what was planned and what was typed (None: not given)."""
    given = {**{name: typed.get(name) for name in TYPED}, "tokens": typed.get("seq")}
    changes = {field: value for field, value in given.items() if value is not None}
    if typed.get("lean") and typed.get("loss") is None and not is_image_config(planned.config):
        changes["loss"] = "chunked"
    stored = stored_quantization(planned.config)
    if typed.get("dtype"):
        changes |= {"dtype": getattr(torch, typed["dtype"]), "dequantized": stored is not None and not stored.four_bit}
    setting = replace(planned.setting, **changes)
    if typed.get("adapter_in_base_dtype"):
        setting = replace(setting, adapter_dtype=setting.dtype)
    find_optimizer(setting.optimizer)
    find_loss(setting.loss)
    names = tuple(dict.fromkeys(typed.get("methods") or _spending(planned.methods, setting)))
    if stored is not None and stored.four_bit:
        names = tuple(dict.fromkeys(QUANTIZED.get(name, name) for name in names))
    methods = [_shardable(find_method(name), setting.ranks) for name in names]
    _require_one_measure(methods, setting, typed)
    # A recipe's own fields belong to its own method, at its own rank.
    kept = setting.fields if typed.get("rank") is typed.get("budget") is None else None
    others = [method.name for method in methods if method.name != planned.setting.method]
    if "budget" in (kept or ()) and others:
        raise PacaError(
            f"{planned.name} has a budget in place of a rank, which {', '.join(others)} can't have; say --rank."
        )
    return [
        replace(setting, method=method.name, fields=kept if method.name == planned.setting.method else None)
        for method in methods
    ]


def _spending(names: tuple[str, ...], setting: TrainingSetting) -> tuple[str, ...]:
    """Without those that a budget can't be given to, where there is one."""
    return names if setting.budget is None else tuple(name for name in names if _spends(find_method(name)))


def _spends(method: Method) -> bool:
    return method.peft in ("paca", None)


def _require_one_measure(methods: list[Method], setting: TrainingSetting, typed: Mapping[str, Any]) -> None:
    if setting.budget is None:
        return
    if typed.get("rank") is not None:
        raise PacaError(
            f"--rank {setting.rank} and --budget {setting.budget:g} both say how much is trained; leave one out."
        )
    others = [method.name for method in methods if not _spends(method)]
    if others:
        raise PacaError(f"--budget is PaCA's; {', '.join(others)} can't have one. Leave it out, or say --rank.")


def _shardable(method: Method, ranks: int) -> Method:
    if ranks > 1 and method.quantization:
        raise PacaError(
            f"--ranks {ranks} with {method.name!r} cannot be planned: how 4-bit layers lie in shards is not "
            "counted. Plan for one rank, or for a method over plain weights."
        )
    return method
