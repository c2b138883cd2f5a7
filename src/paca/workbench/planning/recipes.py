"""Turns a recipe into the setting that is planned for, and estimates a run before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from paca.errors import PacaError
from paca.profiling import Peak
from paca.workbench.base.palette import KINDS
from paca.workbench.base.trainer_arguments import MUON
from paca.workbench.methods.placement import anywhere
from paca.workbench.planning.families import is_image_config
from paca.workbench.planning.methods import QUANTIZED
from paca.workbench.planning.models import find_config, image_size
from paca.workbench.planning.setting import TrainingSetting
from paca.workbench.planning.simulate import Planner
from paca.workbench.planning.stored import stored_quantization
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.recipe.tasks import IMAGES, PREFERENCE


def recipe_setting(recipe: Recipe, config: Any, on_gpu: bool = True) -> TrainingSetting:
    """Say how a recipe trains, on a GPU with bfloat16 or on the CPU.

    A PacaError if the recipe has something that cannot be planned.
    """
    arguments = _arguments(recipe)
    bf16 = recipe.training.get("bf16", not recipe.training.get("fp16", False)) if on_gpu else arguments.bf16
    setting = TrainingSetting(
        method=_method(recipe, config),
        rank=int(recipe.method.config.get("r", 8)),
        batch=arguments.per_device_train_batch_size * _sequences_a_row(recipe),
        dtype=_dtype(recipe.model.dtype, config),
        autocast=bool(bf16),
        checkpointing=arguments.gradient_checkpointing,
        attention="fused" if on_gpu else "sdpa",
        block=512 if on_gpu else 1,
        optimizer=_optimizer(recipe, arguments),
        targets=_targets(recipe),
        lean=recipe.lean,
        fields=anywhere(recipe.method.config),
    )
    if is_image_config(config):
        size = recipe.images.size or image_size(config)
        return replace(setting, pixels=size, batch_norm=recipe.images.batch_norm)
    return replace(
        setting,
        tokens=arguments.max_length,
        loss="chunked",
        # TRL's choice over quantized weights
        adapter_dtype=torch.bfloat16 if setting.method in QUANTIZED.values() else None,
    )


def _arguments(recipe: Recipe) -> Any:
    if recipe.task == IMAGES:
        from paca.workbench.vision.arguments import image_training_arguments

        return image_training_arguments(recipe.training, recipe.output_dir, recipe.seed)
    if recipe.task == PREFERENCE:
        from paca.workbench.recipe.preference_arguments import preference_arguments

        return preference_arguments(recipe.training, recipe.output_dir, recipe.seed)
    from paca.workbench.recipe.text_arguments import training_arguments

    return training_arguments(recipe.training, recipe.output_dir, recipe.seed)


def _optimizer(recipe: Recipe, arguments: Any) -> str:
    if recipe.training.get("optim") == MUON:
        return MUON
    name: str = arguments.optim if isinstance(arguments.optim, str) else arguments.optim.value
    return name


def _sequences_a_row(recipe: Recipe) -> int:
    """Two answers of a pair are computed at once. The reference keeps nothing for backward, so it is no peak."""
    from paca.workbench.recipe.preference_arguments import learns_from_pairs

    return 2 if recipe.task == PREFERENCE and learns_from_pairs(recipe.training) else 1


def _method(recipe: Recipe, config: Any) -> str:
    stored = stored_quantization(config)
    name, quantization = recipe.method.name, recipe.model.quantization
    if quantization is None and stored is not None and stored.four_bit:
        quantization = stored.name
    dora = name == "lora" and recipe.method.config.get("use_dora")
    if quantization is None:
        return "dora" if dora else name
    if isinstance(quantization, Mapping) or quantization == "int8" or name not in QUANTIZED or dora:
        raise PacaError(
            f"model.quantization = {quantization!r} with the method {name!r} cannot be planned; known are nf4 "
            f"and fp4 with {' and '.join(QUANTIZED)}."
        )
    return QUANTIZED[name]


def _targets(recipe: Recipe) -> Any:
    targets = recipe.method.config.get("target_modules", "all-linear")
    return targets if isinstance(targets, str) else tuple(targets)


def _dtype(name: str, config: Any) -> torch.dtype:
    if name == "auto":
        saved = getattr(config, "dtype", None)
        return saved if isinstance(saved, torch.dtype) else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to need.

    Args:
        peak: Of a training step.
        available: Bytes of memory of the device that it would run on.
    """

    peak: Peak
    available: int

    def line(self) -> str:
        """Say it in one line."""
        parts = ", ".join(
            f"{KINDS[name][0]} {size / 2**30:.2f}" for name, size in self.peak.by_category.items() if size
        )
        verdict = "of" if self.peak.total <= self.available else "which is more than the"
        device = "GPU" if torch.cuda.is_available() else "CPU"
        return (
            f"estimated peak of a step: {self.peak.total / 2**30:.2f} GiB ({parts}), {verdict} "
            f"{self.available / 2**30:.1f} GiB that this machine's {device} has"
        )


def estimate(recipe: Recipe) -> Estimate:
    """Estimate what a run of a recipe needs on this machine; takes seconds, and no weights are read.

    A PacaError if the model's configuration is not found, or the recipe has something that cannot be planned.
    """
    config = find_config(recipe.model.name)
    setting = recipe_setting(recipe, config, torch.cuda.is_available())
    return Estimate(Planner(config).step(setting).peak, _memory())


def _memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)
