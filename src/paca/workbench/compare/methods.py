"""The methods that are compared: how each is put onto a model, and at which learning rate it is tried first.

Unless its arguments say otherwise, a method adapts every linear layer but the output head, scales by 1 (alpha = rank),
and trains its adapter in PEFT's default of float32, whatever the base is in.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paca.errors import PacaError
from paca.workbench.methods.placement import anywhere
from paca.workbench.models.embedded_columns import columns_of_embedded
from paca.workbench.models.load import load_model
from paca.workbench.recipe.recipe import ModelSection

FLOOR = "frozen"
FLOOR_AGAIN = "frozen again"


@dataclass(frozen=True)
class Setting:
    """What a method is given.

    Args:
        rank: Of the adapter, where it has one.
        targets: PEFT's `target_modules`.
        seed: Of a selection that is drawn.
        arguments: Of the method's PEFT config; they win over all else.
    """

    rank: int = 16
    targets: Any = "all-linear"
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def anywhere(self) -> "Setting":
        """The same without what places connections by data or another checkpoint: for bytes and times."""
        return dataclasses.replace(self, arguments=anywhere(self.arguments))


@dataclass(frozen=True)
class Method:
    """One way to train a model.

    Args:
        name: What is typed.
        description: What exactly is done, in one line.
        config_class: Finds the class of its PEFT config; None for a method without an adapter.
        fields: Fields of that config that make it this method.
        rate: The learning rate to try first.
        trains_base: Every parameter of the model is trained.
        frozen_part: Adapter parameters with this in their name are not trained.
        adapter_in_base_dtype: The adapter is not put into float32.
        quantization: The base is packed like this, whatever the recipe says; None as the recipe says.
        keeps_base: The base weights are never written to, so that several such models may share them.
    """

    name: str
    description: str
    config_class: Callable[[], Any] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1e-3
    trains_base: bool = False
    frozen_part: str | None = None
    adapter_in_base_dtype: bool = False
    quantization: str | None = None
    keeps_base: bool = False

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.trains_base or self.config_class is not None

    def config(self, setting: Setting) -> Any:
        """Make the PEFT config.

        Args:
            setting: What the method is given.

        Returns:
            An instance of its config class; None for a method without an adapter.
        """
        from peft import TaskType

        if self.config_class is None:
            return None
        cls = self.config_class()
        known = {spec.name for spec in dataclasses.fields(cls)}
        usual = {
            "r": setting.rank,
            "lora_alpha": setting.rank,
            "target_modules": setting.targets,
            "random_seed": setting.seed,
        }
        if "r" in setting.arguments:  # the usual scale follows the rank that was given
            usual["lora_alpha"] = setting.arguments["r"]
        fitting = {key: value for key, value in usual.items() if key in known}
        return cls(**{**fitting, **self.fields, **setting.arguments, "task_type": TaskType.CAUSAL_LM})

    def put_on(self, model: Any, setting: Setting) -> Any:
        """Put the method onto a model.

        Args:
            model: A causal language model; changed in place.
            setting: What the method is given.

        Returns:
            The model to train.

        Raises:
            PacaError: If the base is to be trained and its weights are packed.
        """
        from peft import get_peft_model

        if self.config_class is None:
            packed = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
            if self.trains_base and packed:
                raise PacaError(f"{self.name} can't train packed weights, such as {packed[0]}; use an unpacked base.")
            return model.requires_grad_(self.trains_base)
        with columns_of_embedded(self.config(setting)) as config:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=not self.adapter_in_base_dtype)
        for name, parameter in adapted.named_parameters():
            if self.frozen_part is not None and self.frozen_part in name:
                parameter.requires_grad_(False)
        return adapted


def _paca() -> Any:
    from paca import PacaConfig

    return PacaConfig


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig


def _miss() -> Any:
    from peft import MissConfig

    return MissConfig


def _moslora() -> Any:
    from paca.workbench.methods.moslora import MosLoraConfig

    return MosLoraConfig


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(FLOOR, "nothing trained; a step is forward and input gradients, the least that any method can cost"),
        Method("paca", "this package: columns of the weight itself", _paca, rate=5e-3),
        Method("lora", "PEFT's LoRA, adapter in float32 (PEFT's default)", _lora, rate=2e-3, keeps_base=True),
        Method(
            "lora-base-dtype",
            "PEFT's LoRA, adapter in the base's dtype",
            _lora,
            rate=2e-3,
            adapter_in_base_dtype=True,
            keeps_base=True,
        ),
        Method("dora", "PEFT's DoRA", _lora, {"use_dora": True}, rate=2e-3, keeps_base=True),
        Method("moslora", "LoRA with a trained r × r mixer between A and B", _moslora, rate=2e-3, keeps_base=True),
        Method("miss", "PEFT's MiSS; keeps rank-sized activations too", _miss, rate=1e-3, keeps_base=True),
        Method(
            "lora-fa",
            "PEFT's LoRA with every A frozen; keeps rank-sized activations too",
            _lora,
            rate=5e-3,
            frozen_part="lora_A",
            keeps_base=True,
        ),
        Method("full", "every parameter of the model", rate=5e-5, trains_base=True),
        Method("qpaca", "PaCA over weights in NF4", _paca, rate=5e-3, quantization="nf4"),
        Method("qlora", "PEFT's LoRA over weights in NF4", _lora, rate=2e-3, quantization="nf4", keeps_base=True),
    )
}


@dataclass(frozen=True)
class Chosen:
    """A method as it was asked for.

    Args:
        label: What tables call it: the method's name, with its arguments if it was given some.
        method: The method.
        arguments: Of its PEFT config.
    """

    label: str
    method: Method
    arguments: Mapping[str, Any] = field(default_factory=dict)


def load_base(model: ModelSection, method: Method) -> Any:
    """Load the base model that a method is put onto.

    Args:
        model: The recipe's model section.
        method: It may ask for quantized weights.

    Returns:
        The model.
    """
    loaded = load_model(model.name, model.dtype, method.quantization or model.quantization, model.config)
    loaded.config.use_cache = False
    return loaded
